//! A small network with an explorer of it, and its page in a browser.

use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thirtyfour::prelude::*;
use zfnet::picture::Image;

use crate::place::Place;

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
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A driver, and the browsers that it has started.
pub struct Driver {
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
    // It ends if the port that it has found is taken for its second protocol (IPv4 beside IPv6) meanwhile.
    for _ in 0..TRIES {
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
        if let Some(line) = line_with(&mut program, "successfully on port") {
            let digits = line.trim_end_matches('.').rsplit(' ').next().unwrap().to_owned();
            let _program = Running(program);
            return Some(Driver { address: format!("localhost:{digits}"), _program });
        }
    }
    panic!("chromedriver has found no port in {TRIES} tries");
}

/// Times that a driver is started.
const TRIES: u32 = 5;

/// A small network that has been trained, and an explorer of it.
pub struct Explored {
    pub place: Place,
    pub link: String,
    _program: Running,
}

pub fn zfnet(place: &Place, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zfnet"));
    command.args(arguments.split_whitespace()).current_dir(place.path(""));
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

pub fn command(place: &Place, arguments: &str) {
    let output = zfnet(place, arguments).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn explored() -> Explored {
    let place = Place::new();
    command(&place, "train --data data --arch tiny.toml --epochs 3 --out run");
    explore(place, "run")
}

/// An explorer of these checkpoints.
pub fn explore(place: Place, checkpoints: &str) -> Explored {
    let mut command = zfnet(&place, &format!("explore {checkpoints} --data data --port 0"));
    let mut program = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let link = line_with(&mut program, "http://").expect("a link");
    Explored { place, link, _program: Running(program) }
}

/// A page in a window.
pub struct Page {
    pub driver: WebDriver,
    /// The name of the test, which is that of its thread.
    test: String,
}

/// Waits until a script on the page gives something that is true, and gives it.
macro_rules! until {
    ($page:expr, $script:expr) => {
        $page.until(&$script).await
    };
}
pub(crate) use until;

impl Page {
    pub async fn open(server: &str, link: &str, [width, height]: [u32; 2]) -> Self {
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

    pub async fn script(&self, script: &str) -> Value {
        let result = self.driver.execute(script, Vec::new()).await;
        result.unwrap_or_else(|error| panic!("{script}: {error}")).json().clone()
    }

    pub async fn until(&self, script: &str) -> Value {
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

    pub async fn element(&self, selector: &str) -> WebElement {
        until!(self, format!("return document.querySelector(`{selector}`) !== null"));
        let found = self.driver.find(By::Css(selector)).await;
        found.unwrap_or_else(|error| panic!("{selector}: {error}"))
    }

    /// Clicks as a person would: on what is in sight, once it is.
    pub async fn click(&self, selector: &str) {
        let element = self.element(selector).await;
        element.scroll_into_view().await.unwrap();
        if let Err(error) = element.click().await {
            self.fail(&format!("cannot click {selector}: {error}")).await;
        }
    }

    /// Ends the test with a picture of the page, and what went wrong in it.
    pub async fn fail(&self, why: &str) -> ! {
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.png", self.test));
        let _ = self.driver.screenshot(&picture).await;
        let faults = self.script("return window.faults").await;
        panic!("{why} (faults of the page: {faults}; {} shows it)", picture.display());
    }

    /// Clicks at a place of an element, in shares of its sides.
    pub async fn click_at(&self, selector: &str, x: f64, y: f64) {
        self.drag(selector, [x, y], None).await;
    }

    /// Presses at a place of an element, moves, and lets go.
    pub async fn drag(&self, selector: &str, from: [f64; 2], to: Option<[f64; 2]>) {
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

    pub async fn key(&self, key: &str) {
        self.driver.action_chain().send_keys(key).perform().await.unwrap();
    }

    pub async fn hash(&self) -> String {
        self.script("return location.hash").await.as_str().unwrap().to_owned()
    }

    /// The pixels of a projection once they are those of the state, RGB.
    pub async fn projection(&self, key: &str) -> Vec<u8> {
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

    pub async fn faults(&self) {
        assert_eq!(self.script("return window.faults").await, json!([]), "faults of the page");
    }

    pub async fn close(self) {
        self.faults().await;
        self.driver.quit().await.unwrap();
    }
}

pub fn in_a_browser<F: Future<Output = ()>>(test: impl FnOnce(String) -> F) {
    let Some(driver) = driver() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test(format!("http://{}", driver.address)));
}

pub const WIDE: [u32; 2] = [1280, 900];
pub const NARROW: [u32; 2] = [390, 844];

/// Chooses an image and a layer, and clicks the strongest map where it is strongest.
pub async fn choose(page: &Page, image: usize, layer: &str) {
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
pub fn projected(place: &Place, run: &str, image: &str, unit: &str, rule: &str) -> Vec<u8> {
    let arrays = place.path("arrays.safetensors");
    let file = place.path("data/val").join(image);
    let flags = format!("--unit {unit} --rule {rule} --save-arrays {}", arrays.display());
    command(place, &format!("project {run} {} {flags}", file.display()));
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
