//! One network is looked into.

use std::fs;

use serde_json::json;
use thirtyfour::prelude::*;

use crate::page::{NARROW, Page, WIDE, choose, explored, in_a_browser, projected, until};

#[test]
fn projections_are_those_of_the_command() {
    in_a_browser(async |server| {
        let explored = explored();
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 4, "conv2").await;
            let thought = until!(
                page,
                "const all = [...document.querySelectorAll('#classes li[data-class]')];
                 return all.length === 5 && all.map(li => Number(li.dataset.probability))"
            );
            let sum: f64 = thought.as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).sum();
            assert!(sum > 0.3 && sum <= 1.0001, "{thought}");
            // The link names what is seen; the map's strongest unit is chosen by itself.
            let hash = page.hash().await;
            let parts: Vec<&str> = hash[1..].split(['/', '?']).collect();
            assert_eq!(&parts[..3], ["val", "4", "conv2"], "{hash}");
            let unit = format!("conv2:{}", parts[3]);
            let file =
                page.script("return document.querySelector('#image-file').textContent").await;
            let file = file.as_str().unwrap().to_owned();
            page.script("document.querySelector('#cut').getAttribute('aria-pressed') === 'true' && document.querySelector('#cut').click()").await;
            for rule in ["deconvnet", "gradient", "guided"] {
                page.click(&format!("#rules [data-rule=\"{rule}\"]")).await;
                let seen = page.projection(&format!("{rule}:trained")).await;
                assert_eq!(
                    seen,
                    projected(&explored.place, "run", &file, &unit, rule),
                    "{rule}, {hash}"
                );
            }
            // Untrained weights beside it, at a key.
            page.key("r").await;
            page.element("#pictures [data-picture=\"guided:random\"]").await;
            page.close().await;
        }
    });
}

#[test]
fn a_link_shows_the_same_again() {
    in_a_browser(async |server| {
        let explored = explored();
        let page = Page::open(&server, &explored.link, WIDE).await;
        choose(&page, 7, "conv1").await;
        page.click_at(".tile[data-map]", 0.6, 0.4).await;
        let seen = page.projection("deconvnet:trained").await;
        let here = page.hash().await;
        page.key("\u{e014}").await; // the arrow to the right
        until!(page, format!("return location.hash !== '{here}'"));
        page.key("\u{e012}").await; // and back
        until!(page, format!("return location.hash === '{here}'"));
        assert_eq!(page.projection("deconvnet:trained").await, seen);
        page.click("#mode-cover").await;
        page.drag("#stage", [0.3, 0.3], Some([0.6, 0.5])).await;
        until!(page, "return location.hash.includes('cover=')");
        let covered = page.projection("deconvnet:trained").await;
        let link = format!("{}{}", explored.link, page.hash().await);
        page.close().await;
        let page = Page::open(&server, &link, WIDE).await;
        assert_eq!(page.projection("deconvnet:trained").await, covered);
        // What cannot be shown is a sentence.
        page.driver.goto("about:blank").await.unwrap();
        page.driver.goto(&format!("{}#val/99999/conv9/x/1,1", explored.link)).await.unwrap();
        until!(
            page,
            "return !document.querySelector('#notice').hidden && document.querySelector('#notice-text').textContent.length > 10"
        );
        page.driver.quit().await.unwrap();
    });
}

#[test]
fn a_square_is_dragged_and_run_over_the_image() {
    in_a_browser(async |server| {
        let explored = explored();
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 2, "conv2").await;
            let before = until!(
                page,
                "const li = document.querySelector('#classes li[data-class]'); return li && li.dataset.probability"
            );
            page.click("#mode-cover").await;
            page.drag("#stage", [0.2, 0.2], Some([0.7, 0.7])).await;
            until!(
                page,
                format!(
                    "const li = document.querySelector('#classes li[data-class]');
                     return document.querySelector('#classes').getAttribute('aria-busy') !== 'true'
                         && li.dataset.probability !== '{}'",
                    before.as_str().unwrap()
                )
            );
            page.click("#fill-blur").await;
            page.script("document.querySelector('#sweep-steps').value = '8'; document.querySelector('#sweep-steps').dispatchEvent(new Event('change', { bubbles: true }))").await;
            page.click("#sweep-run").await;
            until!(
                page,
                "return !document.querySelector('#sweep-result').hidden && document.querySelector('#sweep-stop').hidden"
            );
            let caption =
                page.script("return document.querySelector('#sweep-caption').textContent").await;
            assert!(caption.as_str().unwrap().len() > 10, "{caption}");
            page.close().await;
        }
    });
}

#[test]
fn a_held_unit_keeps_the_best_image() {
    in_a_browser(async |server| {
        let explored = explored();
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 0, "conv2").await;
            page.projection("deconvnet:trained").await;
            page.key("h").await;
            let mut best = 0.0f64;
            for _ in 0..4 {
                let value = until!(
                page,
                "const held = document.querySelector('#held-value');
                 return !document.querySelector('#held').hidden && held.dataset.value !== undefined
                     && document.querySelector('#maps').getAttribute('aria-busy') !== 'true' && held.dataset.value"
            );
                best = best.max(value.as_str().unwrap().parse().unwrap());
                let shown = "return document.querySelector('#image-name').dataset.shown";
                let before = page.script(shown).await;
                page.key("n").await;
                until!(page, format!("{shown} !== {before}"));
            }
            assert!(best > 0.0);
            until!(page, "return document.querySelectorAll('#held-list [data-best]').length > 1");
            page.close().await;
        }
    });
}

#[test]
fn pictures_come_from_files_and_the_camera() {
    in_a_browser(async |server| {
        let explored = explored();
        let page = Page::open(&server, &explored.link, WIDE).await;
        let file = fs::read_dir(explored.place.path("data/val")).unwrap().next().unwrap().unwrap();
        let file = fs::read_dir(file.path()).unwrap().next().unwrap().unwrap().path();
        page.driver
            .find(By::Css("#file"))
            .await
            .unwrap()
            .send_keys(file.to_str().unwrap())
            .await
            .unwrap();
        until!(
            page,
            "return document.querySelector('#image-name').dataset.shown?.startsWith('upload/')"
        );
        until!(page, "return document.querySelectorAll('#classes li[data-class]').length === 5");
        // A file that is no picture is a sentence.
        let none = explored.place.path("none.png");
        fs::write(&none, "no picture").unwrap();
        page.driver
            .find(By::Css("#file"))
            .await
            .unwrap()
            .send_keys(none.to_str().unwrap())
            .await
            .unwrap();
        until!(
            page,
            "return document.querySelector('#notice-text').textContent.length > 10
                || document.querySelector('#image-error').textContent.length > 10"
        );
        // Chromium's camera shows a turning disc.
        let of = "return document.querySelector('#image-name').dataset.shown";
        let uploaded = page.script(of).await;
        page.click("#camera").await;
        let first = until!(
            page,
            format!("{of} !== {uploaded} && document.querySelector('#image-name').dataset.shown")
        );
        until!(page, format!("{of} !== {first}"));
        page.click("#camera").await;
        page.driver.quit().await.unwrap();
    });
}

#[test]
fn the_nine_strongest_appear_and_lead_to_their_images() {
    in_a_browser(async |server| {
        let explored = explored();
        for size in [WIDE, NARROW] {
            let page = Page::open(&server, &explored.link, size).await;
            choose(&page, 1, "conv2").await;
            let top = page.element("#top-title").await;
            top.scroll_into_view().await.unwrap(); // it is asked for when somebody looks
            until!(
                page,
                "return document.querySelectorAll('#top-list [data-peak] img').length >= 2"
            );
            until!(
                page,
                "return [...document.querySelectorAll('#top-list img')].every(img => img.complete && img.naturalWidth > 0)"
            );
            let image = page
                .script("return document.querySelector('#top-list [data-peak]').dataset.image")
                .await;
            page.click("#top-list [data-peak]").await;
            until!(
                page,
                format!("return document.querySelector('#image-name').dataset.shown === {image}")
            );
            page.close().await;
        }
    });
}

#[test]
fn keys_do_what_clicks_do() {
    in_a_browser(async |server| {
        let explored = explored();
        let page = Page::open(&server, &explored.link, WIDE).await;
        choose(&page, 3, "conv1").await;
        page.projection("deconvnet:trained").await;
        page.key(".").await;
        until!(
            page,
            "return document.querySelector('#layers [aria-current=\"true\"]').dataset.layer === 'pool1'"
        );
        page.key(",").await;
        until!(
            page,
            "return document.querySelector('#layers [aria-current=\"true\"]').dataset.layer === 'conv1'"
        );
        page.key("3").await;
        page.projection("guided:trained").await;
        let hash = page.hash().await;
        page.key("]").await;
        until!(page, format!("return location.hash !== '{hash}'"));
        page.key("g").await;
        until!(page, "return document.querySelector('#gain').textContent !== '1'");
        page.key("?").await;
        until!(page, "return document.querySelector('#help').open");
        page.key("\u{e00c}").await; // Escape
        until!(page, "return !document.querySelector('#help').open");
        page.key("p").await;
        until!(page, "return document.querySelector('#image-name').dataset.shown === 'val/2'");
        // Every control has a name for those who do not see it.
        let nameless = page
            .script(
                "return [...document.querySelectorAll('button, input, select, canvas[role], [role=listbox]')].filter(e =>
                    e.checkVisibility() && !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.labels?.length
                      || e.textContent.trim() || e.title)).map(e => e.outerHTML.slice(0, 80))",
            )
            .await;
        assert_eq!(nameless, json!([]));
        page.close().await;
    });
}
