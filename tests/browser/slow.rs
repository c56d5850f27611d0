//! What is run by hand: speed, and pictures for people.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::page::{NARROW, Page, WIDE, choose, explored, in_a_browser, until};

/// Median and 90th percentile.
fn spread(mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 10).copied().unwrap_or(f64::NAN);
    format!("{} times, median {:.1} ms, 90 % within {:.1} ms", times.len(), at(5), at(9))
}

/// So many different things in so many seconds.
fn rate(found: &Value) -> String {
    let (count, ms) = (found[0].as_f64().unwrap(), found[1].as_f64().unwrap());
    format!("{:.1} a second ({count} in {:.1} s)", count * 1e3 / ms, ms / 1e3)
}

/// Counts for some seconds how often a text on the page changes, while a script is run for each frame.
async fn changes(page: &Page, text: &str, each_frame: &str, seconds: u32) -> Value {
    let script = format!(
        "return new Promise(done => {{
            let last = null, count = 0;
            const begun = performance.now(), read = () => {text};
            const frame = () => {{
                {each_frame}
                const now = read();
                if (now !== last) {{ count += 1; last = now; }}
                const passed = performance.now() - begun;
                if (passed > {seconds} * 1000) done([count - 1, passed]); else requestAnimationFrame(frame);
            }};
            frame();
        }})"
    );
    page.script(&script).await
}

/// How fast the page is with a network: from click to pixels over 50 units of the three highest convolutions, from an
/// image to all maps of a layer, images a second under a moving cover and from the camera. Printed; ZFNET_EXPLORE=LINK
/// is an explorer that runs: `cargo test --release --test browser -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures an explorer that was started by hand"]
fn speed() {
    let Ok(link) = std::env::var("ZFNET_EXPLORE") else { panic!("ZFNET_EXPLORE: expected a link") };
    in_a_browser(async |server| {
        let page = Page::open(&server, &link, WIDE).await;
        page.click("#choose").await;
        page.click("#thumbs [data-image=\"val/4\"]").await;
        let mut clicks = Vec::new();
        for layer in ["conv3", "conv4", "conv5"] {
            page.click(&format!("#layers [data-layer=\"{layer}\"]")).await;
            until!(
                page,
                "return document.querySelector('#maps').getAttribute('aria-busy') !== 'true'"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
            for number in 1..18 {
                page.script("performance.clearMeasures('zfnet:unit')").await;
                let tile = format!(".tile[data-map]:nth-child({number})");
                page.click_at(&tile, 0.5, 0.5).await;
                let found = page
                    .until(
                        "const busy = document.querySelector('#pictures [aria-busy=\"true\"]');
                         const all = performance.getEntriesByName('zfnet:unit');
                         return !busy && (all.length ? all.at(-1).duration : document.querySelector('#pictures .instead') ? -1 : null)",
                    )
                    .await;
                clicks.extend(found.as_f64().filter(|ms| *ms >= 0.0));
            }
        }
        println!("click to projection: {}", spread(clicks));

        let mut images = Vec::new();
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(700)).await; // the next images' pictures are at rest
            let script = "return new Promise(done => {
                const begun = performance.now();
                const maps = document.querySelector('#maps');
                document.querySelector('#next').click();
                let was = false;
                const look = () => {
                    const busy = maps.getAttribute('aria-busy') === 'true';
                    was ||= busy;
                    if (was && !busy) requestAnimationFrame(() => done(performance.now() - begun));
                    else if (performance.now() - begun > 10000) done(10000);
                    else requestAnimationFrame(look);
                };
                look();
            })";
            images.extend(page.script(script).await.as_f64());
        }
        println!("image to all maps of conv5: {}", spread(images));

        page.click("#mode-cover").await;
        page.drag("#stage", [0.2, 0.2], Some([0.4, 0.4])).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let moved = "const stage = document.querySelector('#stage');
            stage.focus();
            const key = Math.floor(performance.now() / 600) % 2 ? 'ArrowLeft' : 'ArrowRight';
            stage.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));";
        let text = "[...document.querySelectorAll('#classes li')].map(li => li.dataset.probability).join()";
        println!("cover: {}", rate(&changes(&page, text, moved, 5).await));
        page.click("#cover-remove").await;
        page.key("\u{e00c}").await;

        page.click("#camera").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let frames = "document.querySelector('#image-name').dataset.shown";
        println!("camera: {}", rate(&changes(&page, frames, "", 5).await));
        println!("camera, classes of frames: {}", rate(&changes(&page, text, "", 5).await));
        page.driver.quit().await.unwrap();
    });
}

/// For those that look: pictures of the page in the folder ZFNET_PICTURES.
#[test]
#[ignore = "draws the page for people to look at"]
fn pictures() {
    let folder = std::env::var("ZFNET_PICTURES").expect("ZFNET_PICTURES: expected a folder");
    in_a_browser(async |server| {
        let explored = explored();
        for (name, size) in [("wide", WIDE), ("narrow", NARROW)] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 4, "conv2").await;
            page.projection("deconvnet:trained").await;
            page.driver.screenshot(&Path::new(&folder).join(format!("{name}.png"))).await.unwrap();
            page.close().await;
        }
    });
}
