//! `zfnet explore --static`: the page without a server, with answers that were computed beforehand.
//!
//! ```text
//! DIR/index.html, ...     the page; it says of itself that it is published
//! DIR/data/...            what the server answers to an address, in a file named after the address; what is no picture
//!                         is compressed (gzip)
//! ```
//!
//! The answers are asked of the very server that `zfnet explore` runs, so that they cannot differ from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use flate2::Compression;
use flate2::write::GzEncoder;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::engine::{Job, Opened};
use super::server::{App, FILES, Settings, router};
use crate::backend::Backend;
use crate::disk::write_atomic;
use crate::{Error, Result};

/// Of an answer, at most.
const BYTES: usize = 1 << 30;
/// Images of which the first that can be read is taken.
const CANDIDATES: usize = 5;
/// Images of a list.
const AT_ONCE: usize = 500;
/// What the page's element `html` says of itself where there is no server.
const MARK: (&str, &str) = ("<html lang=\"en\">", "<html lang=\"en\" data-published>");
/// The first file of all, and the sign that a folder is of this kind.
const ABOUT: &str = "published.json";

/// What is published.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// `val/12`; empty for the first of each class, at most ten.
    pub images: Vec<String>,
    /// Names of layers; empty for those with weights.
    pub layers: Vec<String>,
    /// Of each layer the maps that fire most in an image, at the unit that does.
    pub maps: usize,
    /// By which rules these are projected.
    pub rules: Vec<String>,
}

/// How much has been published.
#[derive(Clone, Copy, Debug, Default)]
pub struct Published {
    /// Files.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Projections among them.
    pub projections: usize,
}

/// Publishes what is wanted of one checkpoint, whose weights do not change, into a folder, by questions to the networks
/// that it gives back: it ends when these have been answered. `progress` is told what is done, how much and of how much.
///
/// # Errors
/// If the folder holds other things or the system gives no thread. What fails later, the thread returns.
pub fn publish<B: Backend>(
    opened: &[Opened<B>],
    settings: Settings,
    wanted: Wanted,
    out: &Path,
    progress: impl FnMut(&str, usize, usize) + Send + 'static,
) -> Result<(mpsc::Receiver<Job>, JoinHandle<Result<Published>>)> {
    let io = |error| Error::io("write", out)(error);
    let is_ours = out.join("data").join(ABOUT).is_file();
    if !is_ours && fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::file(
            out,
            "expected no such folder, an empty one or one that --static has made",
        ));
    }
    let is_fit = |name: &&String| !opened[0].model.network.layers.iter().any(|l| l.name == **name);
    if let Some(name) = wanted.layers.iter().find(is_fit) {
        return Err(Error::Network(format!("the network has no layer {name}")));
    }
    let (app, jobs) = App::new(opened, settings, 0).map_err(io)?;
    let out = out.to_owned();
    let thread = std::thread::Builder::new().name("publish".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("start a thread for", &out))?;
        let router = router(Arc::new(app));
        let mut publisher = Publisher { router, out, done: Published::default(), progress };
        runtime.block_on(publisher.all(wanted))?;
        Ok(publisher.done)
    });
    Ok((jobs, thread.map_err(io)?))
}

struct Publisher<P> {
    router: Router,
    out: PathBuf,
    done: Published,
    progress: P,
}

impl<P: FnMut(&str, usize, usize)> Publisher<P> {
    async fn all(&mut self, wanted: Wanted) -> Result<()> {
        // What cannot be published shall not take away what was.
        let mut network = json_of(&self.ask(Method::GET, "network").await?)?;
        let images = self.images(&wanted.images, &network).await?;
        let data = self.out.join("data");
        // One that is left half made is none, and this one shall have nothing of another.
        let _ = fs::remove_file(self.out.join("index.html"));
        if data.exists() {
            fs::remove_dir_all(&data).map_err(Error::io("remove", &data))?;
        }
        fs::create_dir_all(&data).map_err(Error::io("create", &data))?;
        self.write(&data.join(ABOUT), b"{}")?;

        let listed = json!({ "total": images.len(), "images": images });
        self.put("images", listed.to_string().as_bytes())?;
        for address in ["run", "filters"] {
            // A first layer need not be a convolution.
            self.take(address).await.ok();
        }
        let layers: Vec<String> = match wanted.layers.is_empty() {
            true => {
                let all = network["layers"].as_array().into_iter().flatten();
                let with_weights = all.filter(|layer| layer["parameters"] != 0).cloned();
                names(&with_weights.collect(), "name")
            }
            false => wanted.layers,
        };
        let ids: Vec<String> = names(&images.into(), "id");
        let mut shown: BTreeSet<(String, u64)> = BTreeSet::new();
        for (number, id) in ids.iter().enumerate() {
            (self.progress)("publish: images", number, ids.len());
            for address in ["thumb", "picture", "input", "classes"] {
                self.take(&format!("{address}/{id}")).await?;
            }
            for layer in &layers {
                let (about, _) =
                    frame(&self.take(&format!("maps/{id}/{}", encoded(layer))).await?)?;
                for (map, y, x) in strongest(&about, wanted.maps) {
                    shown.insert((layer.clone(), map));
                    for rule in &wanted.rules {
                        let layer = encoded(layer);
                        self.take(&format!("project/{id}/{layer}/{map}/{y},{x}?rule={rule}"))
                            .await?;
                        self.done.projections += 1;
                    }
                }
            }
        }
        (self.progress)("publish: images", ids.len(), ids.len());
        self.strongest_of(&shown).await?;

        let mut tops: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (layer, map) in &shown {
            tops.entry(layer).or_default().push(*map);
        }
        network["published"] = json!({
            "layers": layers,
            "maps": wanted.maps,
            "rules": wanted.rules,
            "tops": tops,
        });
        network["rules"] = network["published"]["rules"].clone();
        network["can_keep"] = false.into();
        self.put("network", network.to_string().as_bytes())?;
        for (name, _, text) in FILES.iter().filter(|(name, ..)| !name.is_empty()) {
            self.write(&self.out.join(name), text.as_bytes())?;
        }
        let page = FILES.iter().find(|(name, ..)| name.is_empty()).expect("the page").2;
        assert!(page.contains(MARK.0), "the page begins as it is marked");
        self.write(&self.out.join("index.html"), page.replacen(MARK.0, MARK.1, 1).as_bytes())
    }

    /// The images that are wanted, as the server lists them.
    async fn images(&self, wanted: &[String], network: &Value) -> Result<Vec<Value>> {
        let splits = names(&network["splits"], "name");
        let mut listed = Vec::new();
        for id in wanted {
            let place =
                id.split_once('/').and_then(|(split, n)| Some((split, n.parse::<usize>().ok()?)));
            let (split, number) = place
                .ok_or_else(|| Error::Data(format!("--images: expected as val/12, found {id}")))?;
            let found = self.listed(&format!("split={split}&from={number}&count=1")).await?;
            let image = found.into_iter().next();
            let missing = || Error::Data(format!("--images: there is no image {id}"));
            let image = image.ok_or_else(missing)?;
            self.ask(Method::GET, &format!("input/{id}")).await?; // which says why it cannot be read
            listed.push(image);
        }
        if let (true, Some(split)) = (wanted.is_empty(), splits.first()) {
            let classes = network["data_classes"].as_array().map_or(0, Vec::len).min(10);
            for class in 0..classes {
                let candidates = format!("split={split}&count={CANDIDATES}&class={class}");
                listed.extend(self.good(self.listed(&candidates).await?, 1).await);
            }
            if classes == 0 {
                let candidates = format!("split={split}&count={}", 10 * CANDIDATES);
                listed.extend(self.good(self.listed(&candidates).await?, 10).await);
            }
        }
        if listed.is_empty() {
            return Err(Error::Data("none of the images that were tried can be read".into()));
        }
        if listed.len() > AT_ONCE {
            let reason = format!("--images: {AT_ONCE} can be published, found {}", listed.len());
            return Err(Error::Data(reason));
        }
        Ok(listed)
    }

    /// The first of these images that can be read.
    async fn good(&self, images: Vec<Value>, count: usize) -> Vec<Value> {
        let mut good = Vec::new();
        for image in images {
            let id = image["id"].as_str().unwrap_or_default();
            if good.len() < count && self.ask(Method::GET, &format!("input/{id}")).await.is_ok() {
                good.push(image);
            }
        }
        good
    }

    async fn listed(&self, query: &str) -> Result<Vec<Value>> {
        let found = json_of(&self.ask(Method::GET, &format!("images?{query}")).await?)?;
        Ok(found["images"].as_array().cloned().unwrap_or_default())
    }

    /// The strongest activations of these maps over the data set, with their pictures.
    async fn strongest_of(&mut self, maps: &BTreeSet<(String, u64)>) -> Result<()> {
        let begun = json_of(&self.ask(Method::POST, "search").await?)?;
        let total = begun["total"].as_u64().unwrap_or(0);
        for (number, (layer, map)) in maps.iter().enumerate() {
            let layer = encoded(layer);
            let address = format!("top/{layer}/{map}");
            let found = loop {
                let found = json_of(&self.ask(Method::GET, &address).await?)?;
                if let Some(reason) = found["failed"].as_str() {
                    return Err(Error::Data(reason.into()));
                }
                let done = found["done"].as_u64().unwrap_or(total);
                if done >= total {
                    break found;
                }
                (self.progress)("publish: search", done as usize, total as usize);
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            };
            (self.progress)("publish: the strongest", number, maps.len());
            self.put(&address, found.to_string().as_bytes())?;
            for peak in found["peaks"].as_array().into_iter().flatten() {
                let id = peak["id"].as_str().unwrap_or_default();
                let (y, x) = (&peak["y"], &peak["x"]);
                for what in ["photo", "projection"] {
                    let address = format!("field/{id}/{layer}/{map}/{y},{x}?what={what}");
                    // The image may have been changed since it was searched.
                    self.take(&address).await.ok();
                }
            }
        }
        Ok(())
    }

    /// Publishes an answer, and returns it.
    async fn take(&mut self, address: &str) -> Result<Vec<u8>> {
        let answer = self.ask(Method::GET, address).await?;
        self.put(address, &answer)?;
        Ok(answer)
    }

    async fn ask(&self, method: Method, address: &str) -> Result<Vec<u8>> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/{address}"))
            .header(header::HOST, "localhost")
            .body(Body::empty())
            .map_err(|error| Error::Data(format!("{address}: {error}")))?;
        let service = TowerToHyperService::new(self.router.clone());
        let response = service.call(request).await.unwrap_or_else(|never| match never {});
        let status = response.status();
        let body = to_bytes(response.into_body(), BYTES).await;
        let body = body.map_err(|error| Error::Data(format!("{address}: {error}")))?.to_vec();
        if status != StatusCode::OK {
            let told = json_of(&body).unwrap_or_default();
            let sentence = told["error"].as_str().unwrap_or("an error of the program");
            return Err(Error::Data(format!("{address}: {sentence}")));
        }
        Ok(body)
    }

    fn put(&mut self, address: &str, answer: &[u8]) -> Result<()> {
        let (file, is_picture) = file_of(address);
        let file = self.out.join("data").join(file);
        if is_picture {
            return self.write(&file, answer);
        }
        let mut zipped = GzEncoder::new(Vec::new(), Compression::default());
        let zipped = zipped.write_all(answer).and_then(|()| zipped.finish());
        self.write(&file, &zipped.map_err(Error::io("write", &file))?)
    }

    fn write(&mut self, file: &Path, bytes: &[u8]) -> Result<()> {
        let write = || -> io::Result<()> {
            fs::create_dir_all(file.parent().expect("in the folder"))?;
            write_atomic(file, bytes)
        };
        write().map_err(Error::io("write", file))?;
        self.done.files += 1;
        self.done.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Relative path of the file with the answer to an address, and whether it is a picture: all but letters, digits, `_`,
/// `,`, `-` and `/` is written as `~` and two hexadecimal digits, so that no part of it means anything to a file system.
fn file_of(address: &str) -> (String, bool) {
    let ending = match address.split(['/', '?']).next() {
        Some("thumb" | "picture") => ".jpg",
        Some("input" | "field" | "filters") => ".png",
        _ => ".gz",
    };
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b',' | b'-' | b'/' => {
            (byte as char).to_string()
        }
        other => format!("~{other:02x}"),
    };
    (address.bytes().map(byte).collect::<String>() + ending, ending != ".gz")
}

/// A part of an address, as `encodeURIComponent` writes it.
fn encoded(part: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => (byte as char).to_string(),
        b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')' => (byte as char).to_string(),
        other => format!("%{other:02X}"),
    };
    part.bytes().map(byte).collect()
}

fn json_of(bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes).map_err(|error| Error::Data(format!("an answer: {error}")))
}

/// The JSON and the numbers of a frame.
fn frame(bytes: &[u8]) -> Result<(Value, &[u8])> {
    let short = || Error::Data("an answer is cut short".into());
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (json, numbers) = rest.split_at_checked(length).ok_or_else(short)?;
    Ok((json_of(json)?, numbers))
}

/// A field of each entry of a list.
fn names(list: &Value, field: &str) -> Vec<String> {
    let all = list.as_array().into_iter().flatten();
    all.filter_map(|entry| Some(entry[field].as_str()?.to_owned())).collect()
}

/// The maps that fire most, by their peaks, with the peaks' rows and columns: as the page orders them.
fn strongest(about: &Value, count: usize) -> Vec<(u64, u64, u64)> {
    let peaks = about["peaks"].as_array().into_iter().flatten().enumerate();
    let mut fired: Vec<(f64, u64, u64, u64)> = peaks
        .filter_map(|(map, peak)| {
            let value = peak[0].as_f64().filter(|value| *value > 0.0)?;
            Some((value, map as u64, peak[1].as_u64()?, peak[2].as_u64()?))
        })
        .collect();
    fired.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    fired.into_iter().take(count).map(|(_, map, y, x)| (map, y, x)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_addresses_mean_nothing_to_a_file_system() {
        let file = |address: &str| file_of(address).0;
        assert_eq!(file_of("maps/val/3/conv5"), ("maps/val/3/conv5.gz".into(), false));
        assert_eq!(file_of("thumb/val/3"), ("thumb/val/3.jpg".into(), true));
        assert_eq!(file("field/../x?what=a"), "field/~2e~2e/x~3fwhat~3da.png");
        assert_eq!(file(&format!("maps/{}", encoded("../ü"))), "maps/~2e~2e~252F~25C3~25BC.gz");
    }

    #[test]
    fn the_strongest_maps_are_those_that_fire() {
        let about = json!({ "peaks": [[1.0, 2, 3], [0.0, 0, 0], [5.0, 1, 0], [1.0, 4, 4]] });
        assert_eq!(strongest(&about, 2), [(2, 1, 0), (0, 2, 3)]);
        assert_eq!(strongest(&about, 9).len(), 3);
    }
}
