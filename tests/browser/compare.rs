//! Networks beside each other, runs that go on, classes, views for the report, and the page without a server.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::page::{
    NARROW, Page, WIDE, choose, command, explore, explored, in_a_browser, projected, until, zfnet,
};
use crate::place::Place;

/// Probabilities that a list on the page shows, by class.
async fn shown_classes(page: &Page, list: &str) -> Value {
    until!(
        page,
        format!(
            "const list = document.querySelector('{list}');
             const all = [...list.querySelectorAll('li[data-class]')];
             return list.getAttribute('aria-busy') !== 'true' && all.length >= 5
                 && Object.fromEntries(all.map(li => [li.dataset.class, Number(li.dataset.probability)]))"
        )
    )
}

/// Asserts that they are those of a checkpoint for a validation image.
fn assert_classes(place: &Place, found: &Value, checkpoint: &str, image: &str) {
    let file = place.path("data/val").join(image);
    let line = format!("classify {checkpoint} {} --crops 1 --json", file.display());
    let output = zfnet(place, &line).output().unwrap();
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let most = &printed[0]["classes"][0];
    let probability = most["probability"].as_f64().unwrap();
    let found = found.as_object().unwrap().values().map(|p| p.as_f64().unwrap());
    let nearest = found.map(|p| (p - probability).abs()).fold(1.0, f64::min);
    assert!(nearest < 1e-5, "{checkpoint}: {nearest} from {most}");
}

/// The name of the image's file, as the page has it.
async fn file_of(page: &Page) -> String {
    let name = until!(page, "return document.querySelector('#image-file').textContent");
    name.as_str().unwrap().to_owned()
}

#[test]
fn two_networks_are_compared() {
    let place = Place::new();
    command(&place, "train --data data --arch tiny.toml --epochs 3 --keep 9 --out run");
    command(&place, "train --data data --arch tiny.toml --epochs 2 --seed 5 --out other");
    let explored = explore(place, "run/last other");
    let place = &explored.place;
    in_a_browser(async |server| {
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 4, "conv2").await;
            page.projection("deconvnet:trained").await;
            let file = file_of(&page).await;
            page.key("d").await;
            let found = shown_classes(&page, "#compare-classes").await;
            assert_classes(place, &found, "other", &file);
            // Where a map of the other is strongest, and the same unit of the first fires, too.
            let found = page
                .script(
                    "const maps = async query => {
                         const answer = await (await fetch('./api/maps/val/4/conv2' + query)).arrayBuffer();
                         const length = new DataView(answer).getUint32(0, true);
                         const head = JSON.parse(new TextDecoder().decode(new Uint8Array(answer, 4, length)));
                         return { head, values: new Int8Array(answer, 4 + length) };
                     };
                     const [a, b] = await Promise.all([maps(''), maps('?checkpoint=1')]);
                     const map = b.head.peaks.findIndex(([value, y, x], i) => value > 0 && a.values[(i * 3 + y) * 3 + x] > 0);
                     return map < 0 ? null : [map, b.head.peaks[map][1], b.head.peaks[map][2]]",
                )
                .await;
            let found: Option<[usize; 3]> = serde_json::from_value(found).unwrap();
            let [map, y, x] = found.expect("no unit fires in both");
            page.script(&format!(
                "location.hash = '#val/4/conv2/{map}/{y},{x}/deconvnet?compare=1'"
            ))
            .await;
            until!(
                page,
                format!(
                    "return document.querySelector('#unit-place').textContent.includes('y {y}') && document.querySelector('#unit-title').textContent.includes('{map}')"
                )
            );
            for toggle in ["#cut", "#shared"] {
                page.script(&format!("const toggle = document.querySelector('{toggle}'); toggle.getAttribute('aria-pressed') === 'true' && toggle.click()")).await;
            }
            let seen = page.projection("deconvnet:compared").await;
            assert_eq!(
                seen,
                projected(place, "other", &file, &format!("conv2:{map}"), "deconvnet")
            );
            assert_ne!(page.projection("deconvnet:trained").await, seen);

            // Back to where training began, by the slider.
            page.script("const select = document.querySelector('#compare-with'); select.value = '0'; select.dispatchEvent(new Event('change', { bubbles: true }))").await;
            until!(page, "return document.querySelector('#epoch')?.checkVisibility()");
            page.script("const epoch = document.querySelector('#epoch'); epoch.value = epoch.min; for (const kind of ['input', 'change']) epoch.dispatchEvent(new Event(kind, { bubbles: true }))").await;
            until!(
                page,
                "return document.querySelector('#epoch-text').textContent.includes('0') && location.hash.includes('compare=0,0')"
            );
            let found = shown_classes(&page, "#compare-classes").await;
            assert_classes(place, &found, "run/step-0", &file);
            let own = shown_classes(&page, "#classes").await;
            assert_classes(place, &own, "run/last", &file);
            // The link shows the same.
            let link = format!("{}{}", explored.link, page.hash().await);
            page.close().await;
            let page = Page::open(&server, &link, size).await;
            assert_eq!(shown_classes(&page, "#compare-classes").await, found);
            let wide =
                page.script("return document.documentElement.scrollWidth - innerWidth").await;
            assert!(wide.as_i64().unwrap() <= 0, "{wide} pixels beyond the window");
            page.close().await;
        }
    });
}

#[test]
fn a_run_is_followed_while_it_goes_on() {
    let place = Place::new();
    command(&place, "train --data data --arch tiny.toml --epochs 2 --out run");
    let explored = explore(place, "run/last");
    let place = &explored.place;
    in_a_browser(async |server| {
        let page = Page::open(&server, &explored.link, WIDE).await;
        choose(&page, 4, "conv1").await;
        let before = shown_classes(&page, "#classes").await;
        let file = file_of(&page).await;
        assert_classes(place, &before, "run/last", &file);
        page.click("#open-run").await;
        until!(
            page,
            "return document.querySelector('#run').open && document.querySelector('#run-loss-curve').width > 0"
        );
        command(place, "train --data data --arch tiny.toml --epochs 6 --out run --resume");
        // What was shown is renewed by itself.
        page.script("window.dispatchEvent(new Event('focus'))").await;
        until!(
            page,
            "return (await (await fetch('./api/run')).json()).epoch === 6 && document.querySelector('#run-words').textContent.includes('6')"
        );
        until!(
            page,
            format!(
                "const all = [...document.querySelectorAll('#classes li[data-class]')];
                 const now = Object.fromEntries(all.map(li => [li.dataset.class, Number(li.dataset.probability)]));
                 return document.querySelector('#classes').getAttribute('aria-busy') !== 'true' && JSON.stringify(now) !== JSON.stringify({before})"
            )
        );
        page.click("#run-close").await;
        let after = shown_classes(&page, "#classes").await;
        assert_classes(place, &after, "run/last", &file);
        page.close().await;
    });
}

#[test]
fn a_class_leads_to_its_maps() {
    in_a_browser(async |server| {
        let explored = explored();
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 4, "conv2").await;
            page.key("k").await;
            until!(
                page,
                "return document.querySelector('#study-maps').getAttribute('aria-busy') !== 'true' && document.querySelectorAll('#study-maps [data-map]').length > 3"
            );
            let listed = until!(
                page,
                "const all = [...document.querySelectorAll('#study-maps [data-map]')].map(e => Number(e.dataset.contribution));
                 return all.length > 3 && all[0] > 0 && all"
            );
            let listed: Vec<f64> = serde_json::from_value(listed).unwrap();
            assert!(
                listed.windows(2).all(|pair| pair[0] >= pair[1]) && listed[0] > 0.0,
                "{listed:?}"
            );
            let map = page
                .script("return document.querySelector('#study-maps [data-map]').dataset.map")
                .await;
            page.click("#study-maps [data-map]").await;
            until!(page, format!("return location.hash.split(/[/?]/)[3] === {map}"));
            until!(
                page,
                "return document.querySelector('#histogram').getAttribute('aria-busy') !== 'true' && document.querySelectorAll('#histogram [data-class]').length > 1"
            );
            page.click("#study-images [data-image]").await;
            page.click("#study-close").await;
            page.close().await;
        }
    });
}

#[test]
fn a_view_goes_into_the_report() {
    in_a_browser(async |server| {
        let explored = explored();
        let page = Page::open(&server, &explored.link, WIDE).await;
        choose(&page, 4, "conv2").await;
        page.projection("deconvnet:trained").await;
        page.click("[data-keep=\"map\"]").await;
        until!(page, "return /1/.test(document.querySelector('#notice-text').textContent)");
        let kept = explored.place.path("run/report/explore/view-001.png");
        let picture = zfnet::data::images::read_rgb(&kept).unwrap();
        assert!(picture.width >= 300, "{} pixels", picture.width);
        command(&explored.place, "study report run");
        let report = fs::read_to_string(explored.place.path("run/report/index.html")).unwrap();
        assert!(report.contains("explore/view-001.png") && report.contains("conv2, map"));
        page.close().await;
    });
}

/// A web server that knows of files alone, as those for published pages do; its address.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let folder = folder.clone();
            std::thread::spawn(move || {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    if stream.read(&mut byte).unwrap_or(0) == 0 {
                        return;
                    }
                    request.push(byte[0]);
                }
                let line = String::from_utf8_lossy(&request).into_owned();
                let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
                let path = if path.is_empty() { "index.html".into() } else { path };
                let kind = match Path::new(&path).extension().and_then(|e| e.to_str()) {
                    Some("html") => "text/html",
                    Some("js") => "text/javascript",
                    Some("css") => "text/css",
                    _ => "application/octet-stream",
                };
                let (status, body) = match fs::read(folder.join(&path)) {
                    Ok(body) => ("200 OK", body),
                    Err(_) => ("404 Not Found", b"none".to_vec()),
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            });
        }
    });
    address
}

#[test]
fn a_published_page_shows_what_was_published() {
    let place = Place::new();
    command(&place, "train --data data --arch tiny.toml --epochs 3 --out run");
    command(&place, "explore run --data data --static out --maps 3 --images val/3,val/7");
    let link = serve(place.path("out"));
    in_a_browser(async |server| {
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &link, size).await;
            choose(&page, 7, "conv2").await;
            let file = file_of(&page).await;
            let found = shown_classes(&page, "#classes").await;
            assert_classes(&place, &found, "run", &file);
            page.script("document.querySelector('#cut').getAttribute('aria-pressed') === 'true' && document.querySelector('#cut').click()").await;
            let seen = page.projection("deconvnet:trained").await;
            let hash = page.hash().await;
            let map = hash.split(['/', '?']).nth(3).unwrap().to_owned();
            let unit = format!("conv2:{map}");
            assert_eq!(seen, projected(&place, "run", &file, &unit, "deconvnet"));
            page.element("#top-title").await.scroll_into_view().await.unwrap();
            until!(
                page,
                "const all = [...document.querySelectorAll('#top-list img')]; return all.length >= 2 && all.every(img => img.complete && img.naturalWidth > 0)"
            );
            // What is not there is not offered.
            let offered = page
                .script("return ['#upload', '#camera', '#mode-cover', '#mode-crop', '#random', '#compare-toggle', '#open-study', '[data-keep]'].filter(s => [...document.querySelectorAll(s)].some(e => e.checkVisibility() && !e.disabled))")
                .await;
            assert_eq!(offered, json!([]));
            let pooled = page
                .script("return document.querySelector('#layers [data-layer=\"pool1\"]').disabled")
                .await;
            assert_eq!(pooled, json!(true), "a layer that was not published");
            page.close().await;
        }
    });
}
