//! The server behind `zfnet explore`: what it answers is what the commands print, and nobody else comes in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use zfnet::picture::Image;

use crate::common::program::Place;

/// An explorer, killed when it goes out of scope.
struct Explorer {
    program: Child,
    /// The link that it has printed.
    link: String,
}

impl Explorer {
    fn start(place: &Place, arguments: &str) -> Self {
        let mut command = place.command(&format!("explore {arguments}"));
        let mut program = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut link = String::new();
        BufReader::new(program.stdout.as_mut().unwrap()).read_line(&mut link).unwrap();
        assert!(link.starts_with("http://"), "{link}");
        Explorer { program, link: link.trim().into() }
    }

    /// Host and port.
    fn host(&self) -> &str {
        self.link["http://".len()..].split('/').next().unwrap()
    }

    fn connect(&self) -> TcpStream {
        let port = self.host().rsplit(':').next().unwrap();
        let stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request with these headers in place of the usual ones.
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut all = BTreeMap::from([("host", self.host()), ("connection", "close")]);
        all.extend(headers.iter().copied());
        let mut head = format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
        all.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        let mut stream = self.connect();
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        let _ = stream.write_all(body); // which may have been refused by its length
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        Answer::new(&bytes)
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }

    fn json(&self, path: &str) -> Value {
        self.get(path).json()
    }

    /// What is there once all of it has been done.
    fn when_done(&self, path: &str) -> Value {
        let begun = Instant::now();
        loop {
            let found = self.json(path);
            if found["done"] == found["total"] {
                return found;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60) && found["failed"].is_null(),
                "{found}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Explorer {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

impl Answer {
    fn new(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("headers");
        let headers = String::from_utf8(bytes[..end].into()).unwrap();
        let status = headers.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, headers, body: bytes[end + 4..].into() }
    }

    fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}: {}", self.headers, String::from_utf8_lossy(&self.body));
        self
    }

    fn json(self) -> Value {
        serde_json::from_slice(&self.ok().body).unwrap()
    }

    /// The JSON and the numbers of a frame.
    fn frame(self) -> (Value, Vec<u8>) {
        let body = self.ok().body;
        let length = u32::from_le_bytes(body[..4].try_into().unwrap()) as usize;
        (serde_json::from_slice(&body[4..4 + length]).unwrap(), body[4 + length..].into())
    }

    /// Asserts that it was refused with a sentence that holds these words.
    fn refused(&self, status: u16, words: &str) {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{}: {text}", self.headers);
        let json: Value = serde_json::from_str(&text).expect("a sentence as JSON");
        assert!(json["error"].as_str().unwrap().contains(words), "`{words}` is not in {text}");
    }
}

/// The checksum of a PNG's chunk.
fn crc32(bytes: &[u8]) -> u32 {
    let add = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0xedb8_8320))
    };
    !bytes.iter().fold(!0, add)
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().unwrap())
}

/// Rows and columns of the maps of its conv2.
const SIDE: usize = 3;

/// A run of a small network.
fn trained() -> Place {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --epochs 2 --out run").ok();
    place
}

#[test]
fn answers_are_what_the_commands_print() {
    let place = trained();
    let explorer = Explorer::start(&place, "run --data data --port 0");
    let network = explorer.json("/api/network");
    let names: Vec<&str> =
        network["layers"].as_array().unwrap().iter().map(|l| l["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["conv1", "pool1", "norm1", "conv2", "fc3", "fc4"]);
    assert_eq!(network["splits"][0]["count"], 20);

    let listed = explorer.json("/api/images?split=val&from=3&count=2");
    assert_eq!(listed["total"], 20);
    assert_eq!(listed["images"][1]["id"], "val/4");
    let image = place.path("data").join("val").join(listed["images"][1]["name"].as_str().unwrap());
    assert!(image.is_file(), "{}", image.display());
    let searched = explorer.json("/api/images?split=train&count=500&search=CLASS-NOBODY");
    assert_eq!((searched["total"].as_u64(), searched["images"][0].is_null()), (Some(0), true));
    let of_class = explorer.json("/api/images?split=train&count=500&class=3");
    assert_eq!(of_class["total"], 6);

    // What it takes the image for.
    let printed = place.run(&format!("classify run {} --crops 1 --json", image.display())).json();
    let classes = explorer.json("/api/classes/val/4");
    let classes = classes["classes"].as_array().unwrap();
    let printed = printed[0]["classes"].as_array().unwrap();
    assert_eq!(classes.len(), 5);
    for (found, printed) in classes.iter().zip(printed) {
        assert_eq!(found["name"], printed["class"]);
        let probability = |of: &Value| of["probability"].as_f64().unwrap();
        assert!((probability(found) - probability(printed)).abs() < 1e-6);
    }

    // A projection, to the last bit, where the map is strongest.
    let (maps, values) = explorer.get("/api/maps/val/4/conv2").frame();
    let peaks = maps["peaks"].as_array().unwrap();
    assert_eq!((peaks.len(), values.len()), (12, 12 * SIDE * SIDE));
    let strength = |map: &usize| peaks[*map][0].as_f64().unwrap();
    let map = (0..12).max_by(|a, b| strength(a).total_cmp(&strength(b))).unwrap();
    let (y, x) = (&peaks[map][1], &peaks[map][2]);
    let number = |value: &Value| value.as_u64().unwrap() as usize;
    let at = (map * SIDE + number(y)) * SIDE + number(x);
    assert_eq!(values[at] as i8, 127, "a map's peak is the end of its scale");
    assert_eq!(maps["scales"][map], peaks[map][0]);
    for rule in ["deconvnet", "gradient", "guided"] {
        let flags = format!("--unit conv2:{map} --rule {rule} --save-arrays arrays.safetensors");
        place.run(&format!("project run {} {flags}", image.display())).ok();
        let bytes = fs::read(place.path("arrays.safetensors")).unwrap();
        let arrays = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let path = format!("/api/project/val/4/conv2/{map}/{y},{x}?rule={rule}");
        let (about, values) = explorer.get(&path).frame();
        assert_eq!(values, arrays.tensor("projection").unwrap().data(), "{rule}");
        assert_eq!(about["activation"], peaks[map][0]);
        let (other, others) = explorer.get(&format!("{path}&weights=random")).frame();
        assert!(other["rows"] == 16 && others != values);
    }

    // A unit that did not fire has no projection.
    let silent = (0..values.len()).find(|place| values[*place] == 0).expect("a silent unit");
    let (map, y, x) = (silent / SIDE / SIDE, silent / SIDE % SIDE, silent % SIDE);
    let path = format!("/api/project/val/4/conv2/{map}/{y},{x}");
    let (about, none) = explorer.get(&path).frame();
    if about["activation"].as_f64().unwrap() == 0.0 {
        assert!(none.is_empty());
    } else {
        assert_eq!(none.len(), 16 * 16 * 12, "it is so small that a byte has no place for it");
    }
    let also = explorer.json("/api/classes/val/4?class=0");
    assert!(also["classes"].as_array().unwrap().iter().any(|class| class["class"] == 0));

    // A file, uploaded, is the same image; a cover changes it where it lies, and nothing elsewhere.
    let bytes = fs::read(&image).unwrap();
    let uploaded = explorer.send("POST", "/api/upload", &[], &bytes).json();
    let id = uploaded["id"].as_str().unwrap();
    let input = |path: &str| explorer.get(path).ok().body;
    let whole = input("/api/input/val/4");
    assert_eq!(input(&format!("/api/input/{id}")), whole);
    let decoded = |bytes: &[u8]| zfnet::data::decode::decode(bytes).unwrap();
    let covered = decoded(&input("/api/input/val/4?cover=2,3,6,5&fill=grey"));
    let whole = decoded(&whole);
    for (i, (new, old)) in covered.pixels.chunks(3).zip(whole.pixels.chunks(3)).enumerate() {
        let (y, x) = (i / 16, i % 16);
        let inside = (3..5).contains(&y) && (2..6).contains(&x);
        assert_eq!(new, if inside { &[128; 3] } else { old }, "{y}, {x}");
    }
    // The middle 16 of 20 pixels are what the network sees by itself.
    let part = decoded(&input("/api/input/val/4?view=0.1,0.1,0.8"));
    assert_eq!((part.width, part.pixels), (whole.width, whole.pixels));
    let thumb = decoded(&explorer.get("/api/thumb/val/4").ok().body);
    assert_eq!((thumb.width, thumb.height), (20, 20));
}

#[test]
fn the_strongest_activations_are_those_of_the_study() {
    let place = trained();
    place.run("study features --checkpoint run --data data --units conv2:5").ok();
    let study = fs::read_to_string(place.path("run/report/features/top9.json")).unwrap();
    let study: Value = serde_json::from_str(&study).unwrap();
    let study = study["layers"][0]["rows"][0]["peaks"].as_array().unwrap().clone();
    let explorer = Explorer::start(&place, "run --data data --port 0");
    let not_begun = explorer.json("/api/top/conv2/5");
    assert_eq!((&not_begun["done"], &not_begun["total"]), (&0.into(), &20.into()));
    explorer.send("POST", "/api/search", &[], &[]).ok();
    let top = explorer.when_done("/api/top/conv2/5");
    let found = top["peaks"].as_array().unwrap();
    assert!(!found.is_empty() && found.len() == study.len(), "{found:?} {study:?}");
    for (found, known) in found.iter().zip(&study) {
        let value = |peak: &Value| peak["value"].as_f64().unwrap();
        // Sums of batches of another size may be rounded otherwise.
        assert!((value(found) - value(known)).abs() < 1e-5 * value(known), "{found} {known}");
        assert_eq!((&found["y"], &found["x"]), (&known["y"], &known["x"]));
        let [id, y, x] = ["id", "y", "x"].map(|name| found[name].to_string().replace('"', ""));
        let (about, values) = explorer.get(&format!("/api/project/{id}/conv2/5/{y},{x}")).frame();
        let values: Vec<f32> = values.chunks_exact(4).map(float).collect();
        let field: [i64; 4] = serde_json::from_value(about["field"].clone()).unwrap();
        let cut = |what: &str| {
            let path = format!("/api/field/{id}/conv2/5/{y},{x}?what={what}");
            let decoded = zfnet::data::decode::decode(&explorer.get(&path).ok().body).unwrap();
            Image::new(decoded.width, decoded.height, decoded.pixels)
        };
        assert_eq!(cut("projection"), Image::projection(16, 16, &values).crop(field));
        let input = explorer.get(&format!("/api/input/{id}")).ok().body;
        let input = zfnet::data::decode::decode(&input).unwrap();
        assert_eq!(cut("photo"), Image::new(16, 16, input.pixels).crop(field));
    }
    // What has been searched is kept beside the run.
    drop(explorer);
    let again = Explorer::start(&place, "run --data data --port 0");
    assert_eq!(again.json("/api/top/conv2/5")["done"], 20);
    assert_eq!(again.json("/api/top/conv2/5")["peaks"], top["peaks"]);
}

#[test]
fn nobody_else_comes_in() {
    let place = trained();
    let explorer = Explorer::start(&place, "run --data data --port 0 --allow-host lab.example");
    let with = |headers: &[(&str, &str)]| explorer.send("GET", "/api/run", headers, &[]);
    with(&[]).ok();
    with(&[("host", "lab.example:99")]).ok();
    with(&[("host", "evil.example")]).refused(403, "--allow-host");
    with(&[("origin", "http://evil.example")]).refused(403, "other sites");
    with(&[("origin", "null")]).refused(403, "other sites");
    with(&[("sec-fetch-site", "cross-site")]).refused(403, "other sites");
    // A link on another page leads to the page, and to nothing else.
    let by_a_link = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    with(&by_a_link).refused(403, "other sites");
    explorer.send("GET", "/", &by_a_link, &[]).ok();
    with(&[("sec-fetch-site", "same-origin")]).ok();
    let page = explorer.get("/").ok();
    assert!(page.headers.contains("content-security-policy: default-src 'none'"));
    assert!(!page.headers.to_lowercase().contains("access-control"), "{}", page.headers);

    // Nothing but what is listed has an address.
    for path in [
        "/Cargo.toml",
        "/../tiny.toml",
        "/%2e%2e/tiny.toml",
        "/api/thumb/val/..%2f..%2f..%2ftiny.toml",
        "/api/thumb/..%2f../0",
        "/api/picture/upload/..%2f..%2fx",
        "/api/input/val/99999999",
        "/api/input/val/-1",
        "/api/maps/val/0/conv99",
        "/api/maps/val/0/dropout1",
        "/api/project/val/0/conv2/12/0,0",
        "/api/project/val/0/conv2/0/3,0",
        "/api/project/val/0/conv2/0/0",
        "/api/project/val/0/conv2/0/0,0?rule=none",
        "/api/classes/val/0?view=NaN,0,1",
        "/api/classes/val/0?cover=1",
        "/api/field/val/0/conv2/0/3,0",
        "/api/images",
        "/api/top/conv2/99",
    ] {
        let answer = explorer.get(path);
        assert!((400..500).contains(&answer.status), "{path}: {}", answer.headers);
    }
    explorer.send("DELETE", "/api/run", &[], &[]);

    // Uploads that are none, that are too large, or that would be.
    let upload = |bytes: &[u8]| explorer.send("POST", "/api/upload", &[], bytes);
    upload(b"GIF89a").refused(422, "GIF");
    upload(&[]).refused(422, "empty");
    upload(&vec![0; (32 << 20) + 1]).refused(413, "32 MiB");
    let png = Image::filled(8, 8, 3).png().unwrap();
    let mut bomb = png.clone();
    bomb[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]); // 60,000 pixels a side
    let checksum = crc32(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    upload(&bomb).refused(422, "60000");
    upload(&png[..40]).refused(422, "PNG");
    explorer.get("/api/input/upload/0123456789abcdef").refused(422, "upload it again");
    explorer.json("/api/run");
}

#[test]
fn on_a_network_the_link_has_a_token() {
    let place = trained();
    let explorer = Explorer::start(&place, "run --port 0 --host 0.0.0.0 --base-path /lab/x");
    let (_, query) = explorer.link.split_once('?').expect("a token");
    assert!(explorer.link.contains("/lab/x/?token=") && query.len() == "token=".len() + 32);
    explorer.get("/lab/x/").refused(403, "token");
    explorer.get("/lab/x/api/run?token=0123").refused(403, "token");
    let opened = explorer.get(&format!("/lab/x/?{query}"));
    assert_eq!(opened.status, 303, "{}", opened.headers);
    assert!(opened.headers.contains("location: ./") && opened.headers.contains("HttpOnly"));
    let port = explorer.host().rsplit(':').next().unwrap();
    let cookie = format!("other=1; zfnet-token-{port}={}", &query["token=".len()..]);
    let page = explorer.send("GET", "/lab/x/", &[("cookie", &cookie)], &[]).ok();
    assert!(String::from_utf8_lossy(&page.body).contains("<html"));
    explorer.send("GET", "/api/run", &[("cookie", &cookie)], &[]).refused(404, "no such page");
    let status = explorer.send("GET", "/lab/x/api/run", &[("cookie", &cookie)], &[]).json();
    assert_eq!(status["training"], false);
    let top = explorer.send("GET", "/lab/x/api/top/conv2/0", &[("cookie", &cookie)], &[]).json();
    assert_eq!(top["total"], 0, "there is no data");
}

#[test]
fn slow_and_broken_requests_hold_nothing_up() {
    let place = trained();
    let explorer = Explorer::start(&place, "run --data data --port 0");
    let mut half = explorer.connect();
    half.write_all(b"GET / HTTP/1.1\r\nhost: local").unwrap();
    let mut noise = explorer.connect();
    noise.write_all(b"\x16\x03\x01\x02\x00\x01\r\n\r\n").unwrap();
    // Two hundred questions that nobody waits for.
    for number in 0..200 {
        let mut stream = explorer.connect();
        let path = format!("/api/maps/train/{}/conv1?cover=0,0,{number},9", number % 60);
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    }
    let begun = Instant::now();
    while explorer.get("/api/classes/val/0").status == 503 {
        assert!(begun.elapsed() < Duration::from_secs(30), "still busy");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Bodies of which half has come: others must wait for them, and need not once they have gone.
    let png = Image::filled(8, 8, 3).png().unwrap();
    let upload = || explorer.send("POST", "/api/upload", &[], &png).status;
    let halves: Vec<TcpStream> = (0..4)
        .map(|_| {
            let mut stream = explorer.connect();
            let head = "POST /api/upload HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&png[..9]).unwrap();
            stream
        })
        .collect();
    let until = |status: u16| {
        while upload() != status {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {status}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(503);
    drop(halves);
    until(200);
    #[cfg(target_os = "linux")]
    {
        let status = fs::read_to_string(format!("/proc/{}/status", explorer.program.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib < 200 << 10, "{kib} KiB for questions that nobody waits for");
    }
    let mut rest = Vec::new();
    half.read_to_end(&mut rest).unwrap(); // ended by the other side, or this fails
}

#[test]
#[cfg(unix)]
fn a_port_in_use_is_told_and_an_interrupt_ends_at_once() {
    let place = trained();
    let mut explorer = Explorer::start(&place, "run --port 0");
    let port = explorer.host().rsplit(':').next().unwrap().to_owned();
    place.run(&format!("explore run --port {port}")).refused(&["--port", "in use"]);
    place.run("explore nowhere --port 0").refused(&["nowhere"]);
    place.run("explore run --data nowhere --port 0").refused(&["nowhere"]);
    place.run("explore run --base-path {x} --port 0").refused(&["--base-path"]);
    let pid = explorer.program.id().to_string();
    let begun = Instant::now();
    assert!(std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    while explorer.program.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(explorer.program.wait().unwrap().code(), Some(130));
}

#[test]
fn images_of_any_folder_can_be_looked_at() {
    let place = trained();
    let aside = place.path("aside/deep");
    fs::create_dir_all(&aside).unwrap();
    let from = &place.images("data/val")[0];
    let copied = |path: &Path| fs::copy(path, aside.join(path.file_name().unwrap())).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        copied(&entry.unwrap().path());
    }
    let explorer = Explorer::start(&place, "run --data aside --port 0");
    let network = explorer.json("/api/network");
    assert_eq!(network["splits"][0]["count"], 2);
    assert_eq!(network["data_classes"].as_array().unwrap().len(), 0);
    // An image that vanishes is a sentence.
    let listed = explorer.json("/api/images?split=val&count=9");
    let name = listed["images"][0]["name"].as_str().unwrap();
    let gone = place.path("aside").join(name);
    fs::remove_file(if gone.is_file() { gone } else { aside.join(name) }).unwrap();
    let answer = explorer.get("/api/input/val/0");
    assert_eq!(answer.status, 422, "{}", answer.headers);
    explorer.get("/api/input/val/1").ok();
}

#[test]
fn checkpoints_of_a_run_and_other_networks_are_compared() {
    let place = Place::new();
    place.run("train --data data --arch tiny.toml --epochs 3 --keep 9 --out run").ok();
    place.run("train --data data --arch tiny.toml --epochs 1 --seed 5 --out other").ok();
    let explorer = Explorer::start(&place, "run other run/last --data data --port 0");
    let network = explorer.json("/api/network?checkpoint=1");
    assert_eq!(network["checkpoint"], "other");
    let names: Vec<&Value> =
        network["checkpoints"].as_array().unwrap().iter().map(|c| &c["checkpoint"]).collect();
    assert_eq!(names, ["run", "other", "run/last"]);
    let run = explorer.json("/api/run");
    let steps = run["steps"].as_array().unwrap();
    assert_eq!(
        steps.iter().map(|s| s["epoch"].as_u64().unwrap()).collect::<Vec<_>>(),
        [0, 1, 2, 3]
    );
    assert_eq!((run["curve"].as_array().unwrap().len(), &run["training"]), (3, &false.into()));
    let instance = format!("zfnet-instance: {}", network["instance"].as_str().unwrap());
    assert!(explorer.get("/api/run").headers.contains(&instance));
    assert!(explorer.get("/api/none").headers.contains(&instance));

    // Each answers as the command does with the same weights.
    let image = place.path("data/val").join(
        explorer.json("/api/images?split=val&from=4&count=1")["images"][0]["name"]
            .as_str()
            .unwrap(),
    );
    let probability = |of: &Value| of["probability"].as_f64().unwrap();
    let mut seen = Vec::new();
    let first = steps[0]["step"].as_u64().unwrap();
    for (checkpoint, query) in [
        ("run".to_owned(), "checkpoint=0".to_owned()),
        (format!("run/step-{first}"), format!("step={first}")),
        ("other".to_owned(), "checkpoint=1".to_owned()),
    ] {
        let line = format!("classify {checkpoint} {} --crops 1 --json", image.display());
        let printed = place.run(&line).json();
        let found = explorer.json(&format!("/api/classes/val/4?{query}"));
        let most = &found["classes"][0];
        assert_eq!(most["name"], printed[0]["classes"][0]["class"], "{query}");
        let difference = probability(most) - probability(&printed[0]["classes"][0]);
        assert!(difference.abs() < 1e-6, "{query}: {difference}");
        let filters = explorer.get(&format!("/api/filters?{query}")).ok().body;
        assert!(filters.starts_with(b"\x89PNG"));
        seen.push((probability(most).to_bits(), filters));
    }
    let probabilities: BTreeSet<u64> = seen.iter().map(|(probability, _)| *probability).collect();
    assert_eq!(probabilities.len(), 3, "each has weights of its own");
    let random = explorer.get("/api/filters?weights=random").ok().body;
    assert!(seen[0].1 != seen[2].1 && seen.iter().all(|(_, filters)| *filters != random));
    explorer.get("/api/classes/val/4?checkpoint=3").refused(400, "below 3");
    explorer.get("/api/classes/val/4?step=1").refused(422, "no checkpoint after 1");
    explorer.get("/api/classes/val/4?weights=other").refused(400, "random");
    explorer.get("/api/network?checkpoint=-1").refused(400, "checkpoint");

    // The run goes on: the explorer follows.
    let shown = |explorer: &Explorer| {
        let maps = explorer.get("/api/maps/val/4/conv2?checkpoint=2").frame();
        (maps, explorer.json("/api/run?checkpoint=2"))
    };
    let before = shown(&explorer);
    place.run("train --data data --arch tiny.toml --epochs 5 --keep 9 --out run --resume").ok();
    let after = shown(&explorer);
    assert!(after.0 != before.0 && after.1["version"] != before.1["version"]);
    assert_eq!((after.1["curve"].as_array().unwrap().len(), &after.1["epoch"]), (5, &5.into()));
    let line = format!("classify run/last {} --crops 1 --json", image.display());
    let printed = place.run(&line).json();
    let found = explorer.json("/api/classes/val/4?checkpoint=2");
    let most = (&found["classes"][0], &printed[0]["classes"][0]);
    assert!((probability(most.0) - probability(most.1)).abs() < 1e-6);

    // A copy without the folders that are no links has the best where the run has it.
    fs::create_dir_all(place.path("alone")).unwrap();
    for name in ["last", "best", "metrics.jsonl"] {
        place.run_in_shell(&format!("cp -rL run/{name} alone/{name}")).ok();
    }
    let alone = Explorer::start(&place, "alone --data data --port 0");
    assert_eq!(alone.json("/api/classes/val/4"), explorer.json("/api/classes/val/4"));
    drop(alone);

    // What was asked for with the version before is refused, not answered by other weights.
    let version = before.1["version"].as_str().unwrap();
    explorer
        .get(&format!("/api/maps/val/4/conv2?checkpoint=2&version={version}"))
        .refused(412, "other weights");
    let version = after.1["version"].as_str().unwrap();
    explorer.get(&format!("/api/maps/val/4/conv2?checkpoint=2&version={version}")).ok();
    explorer.get("/api/top/conv2/0?step=1").refused(400, "step");

    // The same network, trained anew in the same folder, after as many updates.
    let before = explorer.get("/api/maps/val/4/conv2?checkpoint=1").frame();
    fs::remove_dir_all(place.path("other")).unwrap();
    place.run("train --data data --arch tiny.toml --epochs 1 --seed 6 --out other").ok();
    assert_ne!(explorer.get("/api/maps/val/4/conv2?checkpoint=1").frame(), before);

    // A run that another network has taken the place of.
    fs::remove_dir_all(place.path("other")).unwrap();
    let toml = fs::read_to_string(place.path("tiny.toml")).unwrap();
    let wider = toml.replacen("channels = 12", "channels = 10", 1);
    assert_ne!(toml, wider);
    fs::write(place.path("wider.toml"), wider).unwrap();
    place.run("train --data data --arch wider.toml --epochs 2 --out other").ok();
    explorer.get("/api/classes/val/4?checkpoint=1").refused(422, "another network");
    fs::remove_dir_all(place.path("other")).unwrap();
    explorer.get("/api/maps/val/4/conv2?checkpoint=1").refused(422, "other");
    explorer.get("/api/maps/val/4/conv2").ok();
}

#[test]
fn what_maps_contribute_to_a_class_adds_up_to_its_logit() {
    let place = trained();
    // Sets that have a single image of the first class.
    let classes = place.images("data/val");
    let [images, others] = [0, 1].map(|class: usize| {
        let folder = classes[class].file_name().unwrap().to_str().unwrap();
        place.images(&format!("data/val/{folder}"))
    });
    let sums: Vec<[f64; 2]> = images[..2]
        .iter()
        .enumerate()
        .map(|(number, image)| {
            let set = format!("set{number}");
            for split in ["train", "val"] {
                for (image, class) in [(image, &classes[0]), (&others[0], &classes[1])] {
                    let to = place.path(&set).join(split).join(class.file_name().unwrap());
                    fs::create_dir_all(&to).unwrap();
                    fs::copy(image, to.join(image.file_name().unwrap())).unwrap();
                }
            }
            let explorer = Explorer::start(&place, &format!("run --data {set} --port 0"));
            let found = explorer.when_done("/api/class/fc3/0");
            assert_eq!(found["done"], 1);
            let maps = found["maps"].as_array().unwrap();
            let contributions: Vec<f64> =
                maps.iter().map(|map| map["contribution"].as_f64().unwrap()).collect();
            assert!(contributions.windows(2).all(|pair| pair[0] >= pair[1]));
            let shown = &found["images"][0];
            assert_eq!(shown["id"], "val/0");
            let classes = explorer.json("/api/classes/val/0?class=0");
            let classes = classes["classes"].as_array().unwrap();
            let probability = &classes.iter().find(|c| c["class"] == 0).unwrap()["probability"];
            assert_eq!(&shown["probability"], probability);
            let (about, _) = explorer.get("/api/maps/val/0/fc4").frame();
            // The last layer's maps are the logits, exact where a map has one unit: its peak.
            [contributions.iter().sum(), about["peaks"][0][0].as_f64().unwrap()]
        })
        .collect();
    // The logit is a bias and the sum of what the units of the layer below contribute.
    let [contributed, logit] = [0, 1].map(|i| sums[1][i] - sums[0][i]);
    assert!((contributed - logit).abs() < 1e-4 * logit.abs().max(1.0), "{contributed} {logit}");
    assert!(logit.abs() > 1e-3, "two images of the same logit tell nothing");

    let explorer = Explorer::start(&place, "run --data data --port 0");
    explorer.get("/api/class/fc3/99").refused(400, "classes");
    explorer.get("/api/class/none/0").refused(400, "no such layer");
    // A histogram is of the maps' peaks, class by class.
    let histogram = explorer.when_done("/api/histogram/conv2/3");
    let edges: Vec<f64> = serde_json::from_value(histogram["edges"].clone()).unwrap();
    let listed = explorer.json("/api/images?split=val&count=99");
    let listed = listed["images"].as_array().unwrap();
    let mut expected: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for image in listed {
        let path = format!("/api/maps/{}/conv2", image["id"].as_str().unwrap());
        let (about, _) = explorer.get(&path).frame();
        let value = about["peaks"][3][0].as_f64().unwrap();
        let last = edges.len() - 2;
        let bin = (0..=last).rfind(|bin| edges[*bin] <= value).unwrap_or(0);
        let of_class = expected.entry(image["class"].as_u64().unwrap());
        of_class.or_insert_with(|| vec![0; last + 1])[bin] += 1;
    }
    let found: BTreeMap<u64, Vec<u64>> = histogram["classes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| {
            let counts = serde_json::from_value(of["counts"].clone()).unwrap();
            (of["class"].as_u64().unwrap(), counts)
        })
        .collect();
    assert_eq!(found, expected);
    assert_eq!(histogram["classes"][0]["name"], explorer.json("/api/network")["data_classes"][0]);

    let without = Explorer::start(&place, "run --port 0");
    without.get("/api/class/fc3/0").refused(422, "--data");
    without.get("/api/histogram/fc3/0").refused(422, "--data");
}

#[test]
fn a_view_is_added_to_the_report() {
    let place = trained();
    let explorer = Explorer::start(&place, "run --data data --port 0");
    assert_eq!(explorer.json("/api/network")["can_keep"], true);
    let png = Image::filled(8, 6, 3).png().unwrap();
    let path = "/api/keep?title=Map+%3Cb%3E&caption=two%20words&link=%23val/3";
    assert_eq!(explorer.send("POST", path, &[], &png).json()["kept"], 1);
    assert_eq!(explorer.send("POST", path, &[], &png).json()["kept"], 2);
    explorer.send("POST", path, &[], b"none").refused(422, "view");
    explorer.send("POST", path, &[], &vec![0; (16 << 20) + 1]).refused(413, "16 MiB");
    place.run("study report run").ok();
    let page = fs::read_to_string(place.path("run/report/index.html")).unwrap();
    for part in [
        "explore/view-001.png",
        "explore/view-002.png",
        "Map &lt;b&gt;",
        "two words",
        "zfnet explore run --data data, #val/3",
    ] {
        assert!(page.contains(part), "{part}");
    }
    let kept = fs::read(place.path("run/report/explore/view-001.png")).unwrap();
    let kept = zfnet::data::decode::decode(&kept).unwrap();
    assert_eq!((kept.width, kept.height, kept.pixels[0]), (8, 6, 3));
    // Another explorer of the same run leaves the report to the first; a file has none.
    let second = Explorer::start(&place, "run --port 0");
    assert_eq!(second.json("/api/network")["can_keep"], false);
    second.send("POST", path, &[], &png).refused(422, "no run");
}

#[test]
#[cfg(unix)]
fn others_are_shown_no_file_outside_the_data_folder() {
    let place = trained();
    let secret = place.images("data/train")[0].clone();
    let secret = fs::read_dir(secret).unwrap().next().unwrap().unwrap().path();
    fs::create_dir_all(place.path("linked")).unwrap();
    std::os::unix::fs::symlink(&secret, place.path("linked/a.png")).unwrap();
    fs::copy(&secret, place.path("linked/b.png")).unwrap();
    std::os::unix::fs::symlink(place.path("linked/b.png"), place.path("linked/c.png")).unwrap();
    let own = Explorer::start(&place, "run --data linked --port 0");
    (0..3).for_each(|number| drop(own.get(&format!("/api/input/val/{number}")).ok()));
    let open = Explorer::start(&place, "run --data linked --port 0 --host 0.0.0.0");
    let (_, token) = open.link.split_once("token=").unwrap();
    let port = open.host().rsplit(':').next().unwrap();
    let cookie = format!("zfnet-token-{port}={token}");
    let get = |path: &str| open.send("GET", path, &[("cookie", &cookie)], &[]);
    for path in
        ["/api/input/val/0", "/api/thumb/val/0", "/api/picture/val/0", "/api/maps/val/0/conv1"]
    {
        get(path).refused(422, "outside");
    }
    get("/api/input/val/1").ok();
    get("/api/input/val/2").ok();
}

#[test]
fn what_is_published_is_what_the_server_answers() {
    let place = trained();
    let line =
        "explore run --data data --static out --maps 2 --layers conv2,fc4 --images val/3,val/7";
    let ran = place.run(line).ok();
    assert!(ran.stderr.contains("projections"), "{}", ran.stderr);
    let explorer = Explorer::start(&place, "run --data data --port 0");
    explorer.send("POST", "/api/search", &[], &[]).ok();
    explorer.when_done("/api/top/conv2/0");
    let page = fs::read_to_string(place.path("out/index.html")).unwrap();
    let served = String::from_utf8(explorer.get("/").ok().body).unwrap();
    assert!(page.replacen(" data-published", "", 1) == served, "the page is another");
    assert_eq!(fs::read(place.path("out/main.js")).unwrap(), explorer.get("/main.js").ok().body);

    // Every answer that was published, by the name of its file.
    let (mut kinds, mut projections) = (BTreeSet::new(), 0);
    let mut folders = vec![place.path("out/data")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(place.path("out/data")).unwrap().to_str().unwrap();
            if ["published.json", "network.gz", "images.gz", "run.gz"].contains(&name) {
                continue;
            }
            let (address, ending) = name.rsplit_once('.').unwrap();
            let address = address.replace("~3f", "?").replace("~3d", "=");
            let mut published = fs::read(&path).unwrap();
            if ending == "gz" {
                let bytes = std::mem::take(&mut published);
                let mut unzip = flate2::read::GzDecoder::new(&bytes[..]);
                unzip.read_to_end(&mut published).unwrap();
            }
            let answer = explorer.get(&format!("/api/{address}")).ok();
            let same = match address.starts_with("top") {
                true => serde_json::from_slice::<Value>(&published).unwrap() == answer.json(),
                false => published == answer.body,
            };
            assert!(same, "{address}");
            let kind = address.split(['/', '?']).next().unwrap().to_owned();
            projections += usize::from(kind == "project");
            kinds.insert(kind);
        }
    }
    let expected =
        ["classes", "field", "filters", "input", "maps", "picture", "project", "thumb", "top"];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(projections, 2 * 2 * 2, "two maps of two layers for two images");

    // Again into the same folder, but into none of other things.
    place.run(&line.replace("--maps 2", "--maps 1")).ok();
    place.run(&line.replace("static out", "static data")).refused(&["data", "--static"]);
    place.run(&line.replace("val/7", "val/99")).refused(&["--images", "val/99"]);
    assert!(place.path("out/index.html").is_file(), "what was published is still there");
    place.run(&line.replace("explore run", "explore run run/last")).refused(&["--static", "one"]);
    place.run(&line.replace("fc4", "fc9")).refused(&["fc9"]);
    let without = place.run("explore run --static out");
    assert!(without.code == Some(2) && without.stderr.contains("--data"), "{}", without.stderr);
}

#[test]
fn a_preferred_image_is_that_of_the_study() {
    let place = trained();
    let line = "study preferred --checkpoint run --units conv2:3 --out preferred";
    place.run(line).ok();
    let folder = place.path("preferred");
    let figure: Value =
        serde_json::from_slice(&fs::read(folder.join("figure.json")).unwrap()).unwrap();
    let text = figure.to_string();
    let file = text.split('"').find(|part| part.ends_with(".png")).expect("a picture");
    let known = zfnet::data::images::read_rgb(&folder.join(file)).unwrap();
    let explorer = Explorer::start(&place, "run --data data --port 0");
    let begun = Instant::now();
    let (about, pixels) = loop {
        let (about, pixels) = explorer.get("/api/preferred/conv2/3").frame();
        if about["step"] == about["steps"] {
            break (about, pixels);
        }
        assert!(about["failed"].is_null() && begun.elapsed() < Duration::from_secs(60), "{about}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!((&about["rows"], &about["columns"]), (&16.into(), &16.into()));
    // The study shows what the unit sees of it, here all, each pixel repeated.
    let times = known.width / 16;
    let one = |i: usize| {
        let at = (i / 16 * times * known.width + i % 16 * times) * 3;
        known.pixels[at..at + 3].to_vec()
    };
    assert_eq!(pixels, (0..16 * 16).flat_map(one).collect::<Vec<u8>>());
    explorer.get("/api/preferred/pool1/0").refused(422, "conv1");
    explorer.get("/api/preferred/conv2/12").refused(400, "12 maps");
}
