//! `zfnet explore`: a network's features in the browser, while it runs.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bench::Benchmark;
use crate::data::Split;
use crate::data::classes::Classes;
use crate::data::images::{Images, ReadOptions};
use crate::data::set::KeyedImages;
use crate::disk::{FolderLock, lock};
use crate::explore::{
    Checkpoint, Engine, Guard, Listening, NAME, Opened, Pictures, Published, Settings, Wanted,
    listen, publish, random_name,
};
use crate::model::Canvas;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::progress::Progress;
use super::signals::end_on_signals;
use super::study::run_folder;
use super::{DeviceArgs, ExitCode, ExternalArgs, OnDevice, output, shown};

/// The port that is tried first.
const PORT: u16 = 8877;

#[derive(Args)]
pub struct Explore {
    /// RUN (its best checkpoint; while it is trained its newest), RUN/step-N, RUN/last, RUN/best, a safetensors file or
    /// another program's network; several to compare them. A run that goes on is followed
    #[arg(required = true, value_name = "CHECKPOINT")]
    checkpoints: Vec<PathBuf>,
    /// Images: a folder with train/CLASS/* and val/CLASS/*, of whatever classes, or of images alone, or shards made by
    /// `zfnet pack`
    #[arg(long)]
    data: Option<PathBuf>,
    /// Port to listen on [default: 8877, or another if that is in use]
    #[arg(long)]
    port: Option<u16>,
    /// Address to listen on; with any but this machine's own, the link that is printed has a token in it
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Host names that a browser may call this machine by, separated by commas (a proxy's, say)
    #[arg(long, value_delimiter = ',')]
    allow_host: Vec<String>,
    /// What a proxy leaves before all addresses, as /user/ada/explore
    #[arg(long, default_value = "")]
    base_path: String,
    /// Open the page in a browser
    #[arg(long)]
    open: bool,
    /// Instead of serving it, write the page into this folder with the projections of some units computed beforehand,
    /// for any web server
    #[arg(long = "static", value_name = "DIR", conflicts_with_all = ["port", "host", "allow_host", "base_path", "open"], requires = "data")]
    publish: Option<PathBuf>,
    /// With --static: images (as val/12), separated by commas [default: the first of each class, at most ten]
    #[arg(long, value_delimiter = ',', requires = "publish")]
    images: Vec<String>,
    /// With --static: layers, separated by commas [default: those with weights]
    #[arg(long, value_delimiter = ',', requires = "publish")]
    layers: Vec<String>,
    /// With --static: maps of each layer, those that fire most in an image
    #[arg(long, default_value_t = 9, requires = "publish")]
    maps: usize,
    /// With --static: rules of the projections, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "deconvnet", value_parser = ["deconvnet", "gradient", "guided"], requires = "publish")]
    rules: Vec<String>,
    #[command(flatten)]
    external: ExternalArgs,
    #[command(flatten)]
    pub device: DeviceArgs,
}

impl OnDevice for Explore {
    fn run<B: Benchmark>(self, backend: &B) -> Result<ExitCode> {
        let base_path = base_path(&self.base_path)?;
        end_on_signals()?;
        if let (Some(_), 2..) = (&self.publish, self.checkpoints.len()) {
            bail!("--static: one checkpoint can be published, found {}", self.checkpoints.len());
        }
        let mut data_classes = None;
        let mut opened: Vec<Opened<B>> = Vec::new();
        for path in &self.checkpoints {
            let run = run_folder(path);
            let checkpoint = Checkpoint::new(path, run);
            let checkpoint = if self.publish.is_some() { checkpoint.fixed() } else { checkpoint };
            let load = |path: &Path| self.external.load(backend, path);
            let mut one = Opened::new(shown(path), checkpoint, load)?;
            let canvas = one.model.preprocess.resize;
            let alike = opened.iter().find(|other| other.model.preprocess.resize == canvas);
            one.splits = match (&self.data, alike) {
                (None, _) => Vec::new(),
                (Some(_), Some(alike)) => alike.splits.clone(),
                (Some(root), None) => {
                    let (splits, classes) = open_splits(root, canvas)?;
                    data_classes = classes;
                    splits
                }
            };
            one.folder = run.map(|run| run.join("report").join(NAME));
            opened.push(one);
        }
        // What is kept beside a run, another explorer may be keeping there.
        let mut held: BTreeMap<PathBuf, Option<FolderLock>> = BTreeMap::new();
        for one in &mut opened {
            one.folder = one.folder.take().filter(|folder| {
                let made = std::fs::create_dir_all(folder).and_then(|()| folder.canonicalize());
                let hold = |folder: PathBuf| {
                    let hold = |folder: &PathBuf| lock(folder, "another command").ok();
                    held.entry(folder).or_insert_with_key(hold).is_some()
                };
                let is_held = made.is_ok_and(hold);
                if !is_held {
                    output::message(format_args!(
                        "note: nothing of this session is kept in {}: another command keeps its own there, or it cannot \
                         be written",
                        folder.display()
                    ));
                }
                is_held
            });
        }
        let token = match self.host.is_loopback() {
            true => None,
            false => Some(random_name().context("the system gives no random numbers")?),
        };
        // Whoever else comes in sees what lies in the folder of the data alone.
        let root = self.data.as_ref().filter(|_| token.is_some());
        let within = root.map(|root| root.canonicalize()).transpose()?;
        let guard = Guard { hosts: self.allow_host, token: token.clone() };
        let mut command = String::from("zfnet explore");
        opened.iter().for_each(|one| command += &format!(" {}", one.name));
        let ExternalArgs { arch, preprocess } = &self.external;
        let data = self.data.as_deref().map(shown);
        let flags = [("data", &data), ("arch", arch), ("preprocess", preprocess)];
        for (flag, value) in flags {
            command +=
                &value.as_ref().map_or_else(String::new, |value| format!(" --{flag} {value}"));
        }
        let settings = Settings {
            pictures: Pictures::new(&opened, within),
            data_classes: data_classes.clone(),
            command,
            guard,
            base_path: base_path.clone(),
        };
        let load = |path: &Path| {
            let loaded = self.external.load(backend, path);
            loaded.map_err(|error| crate::Error::Data(format!("{error:#}")))
        };
        let engine = Engine::new(backend, &opened, data_classes, load);
        if let Some(out) = &self.publish {
            let (images, layers) = (self.images, self.layers);
            let wanted = Wanted { images, layers, maps: self.maps, rules: self.rules };
            let mut progress = Progress::new();
            let told = move |what: &str, done, total| progress.show(what, done, total, "");
            let (jobs, publishing) = publish(&opened, settings, wanted, out, told)?;
            engine.run(jobs);
            let published = publishing.join().map_err(|_| anyhow!("publishing has failed"))??;
            let Published { files, bytes, projections } = published;
            output::message(format_args!(
                "{projections} projections; {files} files, {:.1} MB: put the folder on any web server (browsers open \
                 such a page from no disk), or look at it by python3 -m http.server -d {}",
                bytes as f64 / 1e6,
                out.display()
            ));
            output::line(out.join("index.html").display())?;
            return Ok(ExitCode::SUCCESS);
        }
        let socket = bind(self.host, self.port)?;
        let Listening { address, jobs } =
            listen(socket, &opened, settings).context("cannot serve the page")?;
        let query = token.map_or_else(String::new, |token| format!("?token={token}"));
        let link = format!("http://{}{base_path}/{query}", reachable(address));
        output::line(&link)?;
        let port = address.port();
        match self.host.is_loopback() {
            true => output::message(format_args!(
                "the page is served until Ctrl-C; from another machine: ssh -L {port}:localhost:{port} THIS-MACHINE, and \
                 the same link there"
            )),
            false => output::message(
                "the page is served until Ctrl-C, to everybody who has the link and reaches this machine",
            ),
        }
        if self.open && open::that_detached(&link).is_err() {
            output::message("no browser could be started: open the link by hand");
        }
        engine.run(jobs);
        Ok(ExitCode::SUCCESS)
    }
}

/// The splits that a data set has; images of a folder without any are taken for `val`.
#[allow(clippy::type_complexity)]
fn open_splits(
    root: &Path,
    canvas: Canvas,
) -> Result<(Vec<(Split, Arc<Images>)>, Option<Classes>)> {
    // Nothing is averaged over images, so that bad ones are no reason to stop.
    let options = ReadOptions { canvas, max_bad: 1.0, cache_bytes: 0, io: None };
    let found = KeyedImages::open(root, None, options);
    if let Ok(KeyedImages { images, classes: None, .. }) = found {
        return Ok((vec![(Split::Val, images)], None));
    }
    let train = KeyedImages::open(root, Some(Split::Train), options);
    let (mut splits, mut classes) = (Vec::new(), None);
    let both = match (found, train) {
        (Err(error), Err(_)) => return Err(error.into()),
        (val, train) => [(Split::Val, val), (Split::Train, train)],
    };
    for (split, keyed) in both {
        match keyed {
            Ok(keyed) => {
                classes = keyed.classes;
                splits.push((split, keyed.images));
            }
            Err(error) => output::message(format_args!("note: without {}: {error}", split.name())),
        }
    }
    Ok((splits, classes))
}

fn bind(host: IpAddr, port: Option<u16>) -> Result<TcpListener> {
    let try_port = |port| TcpListener::bind(SocketAddr::new(host, port));
    match (try_port(port.unwrap_or(PORT)), port) {
        (Err(error), None) if error.kind() == io::ErrorKind::AddrInUse => {
            try_port(0).with_context(|| format!("cannot listen on {host}"))
        }
        (Err(error), Some(port)) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!("--port: {port} is in use by another program; leave it out for a free one")
        }
        (bound, _) => {
            bound.with_context(|| format!("cannot listen on {host}, port {}", port.unwrap_or(PORT)))
        }
    }
}

/// An address that a browser can open: of all of a machine's the one by which it reaches others.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    // Nothing is sent: the system only chooses a way to an address kept for documentation.
    let chosen = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    let own = chosen.map_or(Ipv4Addr::LOCALHOST.into(), |chosen| chosen.ip());
    SocketAddr::new(own, address.port())
}

/// With a slash before it and none behind it.
fn base_path(given: &str) -> Result<String> {
    let parts: Vec<&str> = given.split('/').filter(|part| !part.is_empty()).collect();
    let is_fit = |c: char| c.is_ascii_alphanumeric() || "-_.~@%".contains(c);
    if !parts.iter().all(|part| part.chars().all(is_fit)) {
        bail!("--base-path: expected a path of an address, as /user/ada/explore, found {given}");
    }
    Ok(parts.iter().map(|part| format!("/{part}")).collect())
}

#[cfg(test)]
mod tests {
    use super::base_path;

    #[test]
    fn a_base_path_begins_with_a_slash_and_ends_without() {
        for (given, expected) in [("", ""), ("/", ""), ("a/b/", "/a/b"), ("/a", "/a")] {
            assert_eq!(base_path(given).unwrap(), expected);
        }
        assert!(base_path("/a b").is_err() && base_path("/{x}").is_err());
    }
}
