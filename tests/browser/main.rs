//! The explorer in a real browser: each thing a person does on its page is done by clicks, keys and drags.
//!
//! Needs Chromium and its driver (Debian: chromium, chromium-driver). Where they are missing the tests say so and
//! are skipped; `ZFNET_BROWSER=required` makes that a failure.

#[allow(dead_code)] // what other tests use of it
#[path = "../common/place.rs"]
mod place;

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use place::Place;
use serde_json::{Value, json};
use thirtyfour::prelude::*;
use zfnet::picture::Image;

/// Longest that a part of the page may take, on a machine that does other things, too.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps what goes wrong in the page, from its first line on.
const WATCH: &str = "window.faults = [];
    addEventListener('error', event => faults.push(String(event.message)));
    addEventListener('unhandledrejection', event => faults.push(String(event.reason)));
    addEventListener('securitypolicyviolation', event => faults.push('policy: ' + event.violatedDirective));
    const say = console.error;
    console.error = (...all) => { faults.push(all.join(' ')); say(...all) };";

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A driver, and the browsers that it has started.
struct Driver {
    address: String,
    _program: Running,
}

impl Drop for Driver {
    /// Ends also the browser of a test that has failed.
    fn drop(&mut self) {
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let _ = stream.write_all(b"GET /shutdown HTTP/1.1\r\nhost: localhost\r\n\r\n");
            let _ = stream.read(&mut [0; 64]);
        }
    }
}

/// The first line that a program prints in which these words are; what follows is read, and forgotten.
fn line_with(program: &mut Child, words: &str) -> Option<String> {
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines().map_while(Result::ok);
    let found = lines.find(|line| line.contains(words));
    std::thread::spawn(move || lines.for_each(drop));
    found
}

/// A driver of Chromium at a port of its own.
fn driver() -> Option<Driver> {
    let program = Command::new("chromedriver")
        .arg("--port=0")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut program) = program else {
        let required = std::env::var("ZFNET_BROWSER").is_ok_and(|value| value == "required");
        assert!(!required, "chromedriver is not there, but required");
        eprintln!(
            "skipped: chromedriver is not there (Debian: apt install chromium chromium-driver)"
        );
        return None;
    };
    let line = line_with(&mut program, "successfully on port").expect("a driver");
    let digits = line.trim_end_matches('.').rsplit(' ').next().unwrap().to_owned();
    Some(Driver { address: format!("localhost:{digits}"), _program: Running(program) })
}

/// A small network that has been trained, and an explorer of it.
struct Explored {
    place: Place,
    link: String,
    _program: Running,
}

fn zfnet(place: &Place, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfnet"));
    command.args(arguments.split_whitespace()).current_dir(place.path(""));
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

fn run(place: &Place, arguments: &str) {
    let output = zfnet(place, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn explored() -> Explored {
    let place = Place::new();
    run(&place, "train --data data --arch tiny.toml --epochs 3 --out run");
    let mut command = zfnet(&place, "explore run --data data --port 0");
    let mut program = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let link = line_with(&mut program, "http://").expect("a link");
    Explored { place, link, _program: Running(program) }
}

/// A page in a window.
struct Page {
    driver: WebDriver,
    /// The name of the test, which is that of its thread.
    test: String,
}

/// Waits until a script on the page gives something that is true, and gives it.
macro_rules! until {
    ($page:expr, $script:expr) => {
        $page.until(&$script).await
    };
}

impl Page {
    async fn open(server: &str, link: &str, [width, height]: [u32; 2]) -> Self {
        let mut options = DesiredCapabilities::chrome();
        for flag in [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--use-fake-device-for-media-stream",
            "--use-fake-ui-for-media-stream",
        ] {
            options.add_arg(flag).unwrap();
        }
        let mobile =
            json!({ "deviceMetrics": { "width": width, "height": height, "pixelRatio": 1.0 } });
        if width < 500 {
            options.add_experimental_option("mobileEmulation", mobile).unwrap();
        }
        let driver = WebDriver::new(server, options).await.unwrap();
        driver.set_window_rect(0, 0, width, height).await.unwrap();
        let watch = json!({ "source": WATCH });
        let added = driver.cdp().send_raw("Page.addScriptToEvaluateOnNewDocument", watch).await;
        added.unwrap();
        driver.goto(link).await.unwrap();
        let test = std::thread::current().name().unwrap_or("browser").replace("::", "-");
        let page = Page { driver, test };
        until!(page, "return document.documentElement.dataset.ready === 'true'");
        page
    }

    async fn script(&self, script: &str) -> Value {
        let result = self.driver.execute(script, Vec::new()).await;
        result.unwrap_or_else(|error| panic!("{script}: {error}")).json().clone()
    }

    async fn until(&self, script: &str) -> Value {
        let begun = Instant::now();
        loop {
            let value = self.script(script).await;
            let is_there = !matches!(value, Value::Null | Value::Bool(false)) && value != json!("");
            if is_there {
                return value;
            }
            if begun.elapsed() > PATIENCE {
                self.fail(&format!("waited in vain for: {script}")).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn element(&self, selector: &str) -> WebElement {
        until!(self, format!("return document.querySelector(`{selector}`) !== null"));
        let found = self.driver.find(By::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    /// Clicks as a person would: on what is in sight, once it is.
    async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        element.scroll_into_view().await.unwrap();
        if let Err(error) = element.click().await {
            self.fail(&format!("cannot click {selector}: {error}")).await;
        }
    }

    /// Ends the test with a picture of the page, and what went wrong in it.
    async fn fail(&self, why: &str) -> ! {
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.png", self.test));
        let _ = self.driver.screenshot(&picture).await;
        let faults = self.script("return window.faults").await;
        panic!("{why} (faults of the page: {faults}; {} shows it)", picture.display());
    }

    /// Clicks at a place of an element, in shares of its sides.
    async fn click_at(&self, selector: &str, x: f64, y: f64) {
        self.drag(selector, [x, y], None).await;
    }

    /// Presses at a place of an element, moves, and lets go.
    async fn drag(&self, selector: &str, from: [f64; 2], to: Option<[f64; 2]>) {
        let element = self.element(selector).await;
        element.scroll_into_view().await.unwrap();
        let area = element.rect().await.unwrap();
        // From the middle of the element, as WebDriver counts.
        let at =
            |[x, y]: [f64; 2]| (((x - 0.5) * area.width) as i64, ((y - 0.5) * area.height) as i64);
        let mut chain = self.driver.action_chain();
        let (x, y) = at(from);
        chain = chain.move_to_element_with_offset(&element, x, y).click_and_hold();
        if let Some(to) = to {
            for step in 1..=4 {
                let share = f64::from(step) / 4.0;
                let between = [0, 1].map(|i| from[i] + share * (to[i] - from[i]));
                let (x, y) = at(between);
                chain = chain.move_to_element_with_offset(&element, x, y);
            }
        }
        chain.release().perform().await.unwrap();
    }

    async fn key(&self, key: &str) {
        self.driver.action_chain().send_keys(key).perform().await.unwrap();
    }

    async fn hash(&self) -> String {
        self.script("return location.hash").await.as_str().unwrap().to_owned()
    }

    /// The pixels of a projection once they are those of the state, RGB.
    async fn projection(&self, key: &str) -> Vec<u8> {
        let pixels = until!(
            self,
            format!(
                "const figure = document.querySelector(`#pictures [data-picture=\"{key}\"]`);
                 const canvas = figure?.querySelector('canvas');
                 if (!canvas || figure.getAttribute('aria-busy') === 'true' || !canvas.width) return null;
                 const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
                 return {{ width: canvas.width, rgb: [...all].filter((_, i) => i % 4 < 3) }}"
            )
        );
        let bytes = pixels["rgb"].as_array().unwrap();
        bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect()
    }

    async fn faults(&self) {
        assert_eq!(self.script("return window.faults").await, json!([]), "faults of the page");
    }

    async fn close(self) {
        self.faults().await;
        self.driver.quit().await.unwrap();
    }
}

fn in_a_browser<F: Future<Output = ()>>(test: impl FnOnce(String) -> F) {
    let Some(driver) = driver() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(format!("http://{}", driver.address)));
}

const WIDE: [u32; 2] = [1280, 900];
const NARROW: [u32; 2] = [390, 844];

/// Chooses an image and a layer, and clicks the strongest map where it is strongest.
async fn choose(page: &Page, image: usize, layer: &str) {
    page.click("#choose").await;
    page.click(&format!("#thumbs [data-image=\"val/{image}\"]")).await;
    until!(
        page,
        format!("return document.querySelector('#image-name').dataset.shown === 'val/{image}'")
    );
    page.click(&format!("#layers [data-layer=\"{layer}\"]")).await;
    until!(
        page,
        "return document.querySelector('#maps').getAttribute('aria-busy') !== 'true'
            && document.querySelector('.tile[data-map]') !== null"
    );
}

/// What `zfnet project` makes of a unit of a validation image, as the picture that it draws.
fn projected(explored: &Explored, image: &str, unit: &str, rule: &str) -> Vec<u8> {
    let arrays = explored.place.path("arrays.safetensors");
    let file = explored.place.path("data/val").join(image);
    let flags = format!("--unit {unit} --rule {rule} --save-arrays {}", arrays.display());
    run(&explored.place, &format!("project run {} {flags}", file.display()));
    let bytes = fs::read(arrays).unwrap();
    let arrays = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = arrays.tensor("projection").unwrap();
    let values: Vec<f32> = floats
        .data()
        .chunks_exact(4)
        .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
        .collect();
    Image::projection(16, 16, &values).pixels
}

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
                assert_eq!(seen, projected(&explored, &file, &unit, rule), "{rule}, {hash}");
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
        let page = Page::open(&server, &explored.link, WIDE).await;
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
        let page = Page::open(&server, &explored.link, WIDE).await;
        choose(&page, 1, "conv2").await;
        let top = page.element("#top-title").await;
        top.scroll_into_view().await.unwrap(); // it is asked for when somebody looks
        until!(page, "return document.querySelectorAll('#top-list [data-peak] img').length >= 2");
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

/// From click to pixels over 50 units of the three highest convolutions, printed; ZFNET_EXPLORE=LINK is an explorer
/// that runs: `cargo test --release --test browser -- --ignored --nocapture speed`.
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
        clicks.sort_by(f64::total_cmp);
        println!(
            "{} units, median {:.1} ms, 90 % within {:.1} ms",
            clicks.len(),
            clicks[clicks.len() / 2],
            clicks[clicks.len() * 9 / 10]
        );
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
