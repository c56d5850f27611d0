//! What the page asks for over HTTP. All addresses are relative to the page, so that it works behind any prefix.
//!
//! ```text
//! ./                                   the page, and its scripts and styles beside it
//! api/network                          layers, classes, splits; all checkpoints           JSON
//! api/run                              how far its run is: curves, checkpoints, alarms    JSON
//! api/filters                          the first layer's filters                          PNG
//! api/images?split&from&count          images of a split [class, search]                  JSON
//! api/thumb/IMAGE, api/picture/IMAGE   a picture, small or large                          JPEG
//! POST api/upload                      takes a JPEG or PNG, gives its IMAGE               JSON
//! api/input/IMAGE                      what the network sees                              PNG
//! api/classes/IMAGE                    the five most probable classes [class: one more]   JSON
//! api/maps/IMAGE/LAYER                 all maps of a layer                                frame
//! api/project/IMAGE/LAYER/MAP/Y,X      a unit's projection [rule]; no numbers if it did   frame
//!                                      not fire
//! api/field/IMAGE/LAYER/MAP/Y,X        a unit's receptive field [what=projection]         PNG
//! POST api/search                      begins to search for the strongest activations     JSON
//! api/top/LAYER/MAP                    the strongest over the data set, so far            JSON
//! api/class/LAYER/CLASS                what maps contribute to a class, so far            JSON
//! api/histogram/LAYER/MAP              a map's largest activations by class, so far       JSON
//! api/preferred/LAYER/MAP              a map's preferred image, so far                    frame
//! POST api/keep?title&caption&link     takes a PNG, adds it to the run's report           JSON
//! ```
//!
//! `IMAGE` is `val/N`, `train/N` or `upload/NAME`; `?view` and `?cover` (with `fill`) change what is shown of it
//! (address.rs). All that depends on a network takes `?checkpoint` (its number on the command line, from 0), and where
//! weights matter `?step` (a checkpoint of its run), `?weights=random` (untrained ones) and `?version` (that of `api/run`:
//! if the weights are others by now, status 412). A frame is the length of
//! some JSON (u32, little endian), that JSON, and numbers. The header `zfnet-instance` is another one each time that the
//! program begins, so that a page does not take the answers of a program that has taken the port.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_response_with_state};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_io_timeout::TimeoutStream;

use super::address::Address;
use super::checkpoint::Checkpoint;
use super::engine::{
    Answer, Failed, Job, ListedLayer, Opened, PANICKED, Questions, Unit, Which, listed,
};
use super::guard::{Claim, Guard, random_name};
use super::pictures::{Pictures, Prepared};
use super::views::{Views, Words};
use crate::backend::Backend;
use crate::data::classes::Classes;
use crate::model::Rule;
use crate::picture::Image;
use crate::report::COLOURS;

/// Bytes of an upload.
const UPLOAD: usize = 32 << 20;
/// Bytes of a view for the report.
const VIEW: usize = 16 << 20;
/// Jobs that wait for the network; more are refused, so that memory stays bounded.
const WAITING: usize = 64;
/// Requests whose pictures are decoded at a time: each may take some hundred megabytes for a moment.
const DECODED_AT_ONCE: usize = 2;
/// Uploads that are received at a time.
const UPLOADED_AT_ONCE: usize = 4;
/// Connections at a time.
const CONNECTIONS: usize = 128;
/// Time in which a request must have come, and in which it must be answered.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);
/// Longest that a client may take nothing of an answer.
const WRITTEN_WITHIN: Duration = Duration::from_secs(20);
/// Images of one list.
const LISTED: usize = 500;
const RULES: [&str; 3] = ["deconvnet", "gradient", "guided"];
/// With the port behind it, since cookies are the same for all ports.
const COOKIE: &str = "zfnet-token-";

/// The header that names the program that answers.
const INSTANCE: &str = "zfnet-instance";

/// Nothing but what comes from here, and no script or style within the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
                      connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'self'";

/// A file of the page: its name, its type, what is in it.
pub(super) type File = (&'static str, &'static str, &'static str);

const fn script(name: &'static str, text: &'static str) -> File {
    (name, "text/javascript; charset=utf-8", text)
}

/// The files of the page.
pub(super) const FILES: &[File] = &[
    ("", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("colours.css", "text/css; charset=utf-8", COLOURS),
    ("explore.css", "text/css; charset=utf-8", include_str!("page/explore.css")),
    script("api.js", include_str!("page/api.js")),
    script("camera.js", include_str!("page/camera.js")),
    script("chart.js", include_str!("page/chart.js")),
    script("chooser.js", include_str!("page/chooser.js")),
    script("classes.js", include_str!("page/classes.js")),
    script("compare.js", include_str!("page/compare.js")),
    script("cover.js", include_str!("page/cover.js")),
    script("dom.js", include_str!("page/dom.js")),
    script("draw.js", include_str!("page/draw.js")),
    script("hold.js", include_str!("page/hold.js")),
    script("keys.js", include_str!("page/keys.js")),
    script("link.js", include_str!("page/link.js")),
    script("live.js", include_str!("page/live.js")),
    script("load.js", include_str!("page/load.js")),
    script("main.js", include_str!("page/main.js")),
    script("maps.js", include_str!("page/maps.js")),
    script("nets.js", include_str!("page/nets.js")),
    script("preferred.js", include_str!("page/preferred.js")),
    script("progress.js", include_str!("page/progress.js")),
    script("published.js", include_str!("page/published.js")),
    script("save.js", include_str!("page/save.js")),
    script("square.js", include_str!("page/square.js")),
    script("stage.js", include_str!("page/stage.js")),
    script("state.js", include_str!("page/state.js")),
    script("strip.js", include_str!("page/strip.js")),
    script("study.js", include_str!("page/study.js")),
    script("sweep.js", include_str!("page/sweep.js")),
    script("timing.js", include_str!("page/timing.js")),
    script("top.js", include_str!("page/top.js")),
    script("tour.js", include_str!("page/tour.js")),
    script("training.js", include_str!("page/training.js")),
    script("unit.js", include_str!("page/unit.js")),
    script("upload.js", include_str!("page/upload.js")),
    script("view.js", include_str!("page/view.js")),
];

/// What a server is given.
pub struct Settings {
    /// Where the pictures are from.
    pub pictures: Pictures,
    /// Classes of the data set's images.
    pub data_classes: Option<Classes>,
    /// What opens the same page again, where its names are known, for views in the report.
    pub command: String,
    /// Who may ask.
    pub guard: Guard,
    /// What comes before all addresses, as `/lab/explore`; empty for nothing.
    pub base_path: String,
}

/// A server that answers.
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    /// What it asks the network.
    pub jobs: mpsc::Receiver<Job>,
}

/// What answers.
pub(super) struct App {
    pictures: Pictures,
    data_classes: Option<Classes>,
    command: String,
    guard: Guard,
    base_path: String,
    port: u16,
    /// Another one each time that the program begins.
    instance: String,
    networks: Vec<Shown>,
    views: Option<Views>,
    jobs: mpsc::Sender<Job>,
    decoders: Arc<Semaphore>,
    uploads: Semaphore,
}

/// A checkpoint as pages are told of it.
struct Shown {
    /// What `api/network` says.
    about: Value,
    layers: Vec<ListedLayer>,
    classes: usize,
    checkpoint: Checkpoint,
}

type Shared = State<Arc<App>>;

/// A sentence, and the status it comes with.
struct Refusal(StatusCode, String);

type Answered<T = Response> = Result<T, Refusal>;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Refusal(status, sentence) = self;
        (status, axum::Json(json!({ "error": sentence }))).into_response()
    }
}

impl From<crate::Error> for Refusal {
    fn from(error: crate::Error) -> Self {
        let sentence = match error {
            crate::Error::Data(sentence) => sentence,
            error => error.to_string(),
        };
        Refusal(StatusCode::UNPROCESSABLE_ENTITY, sentence)
    }
}

impl From<Failed> for Refusal {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Error(error) => error.into(),
            Failed::Replaced => {
                let sentence = "The run has other weights by now.";
                Refusal(StatusCode::PRECONDITION_FAILED, sentence.into())
            }
        }
    }
}

fn bad(sentence: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, sentence.into())
}

/// Begins to answer on a socket, in threads that end with the program, about checkpoints of which there is at least
/// one.
///
/// # Errors
/// If the system gives no thread or no random numbers, or the socket is none to serve on.
pub fn listen<B: Backend>(
    socket: TcpListener,
    opened: &[Opened<B>],
    settings: Settings,
) -> io::Result<Listening> {
    let address = socket.local_addr()?;
    let (app, jobs) = App::new(opened, settings, address.port())?;
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1) // what computes is elsewhere
        .max_blocking_threads(4)
        .enable_all()
        .build()?;
    std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => accept(socket, router(app.into())).await,
                Err(error) => tracing::error!("cannot serve: {error}"),
            }
        });
    })?;
    Ok(Listening { address, jobs })
}

/// Accepts connections, each of which has a limited time for its headers.
async fn accept(socket: tokio::net::TcpListener, router: Router) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = socket.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await; // too many open files, say
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITTEN_WITHIN)); // a client that does not read holds nothing up
        tokio::spawn(async move {
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .serve_connection(TokioIo::new(Box::pin(stream)), service);
            let _ = served.await; // a client that left, or that speaks something else
            drop(permit);
        });
    }
}

pub(super) fn router(app: Arc<App>) -> Router {
    let at = |path: &str| format!("{}{path}", app.base_path);
    let mut routes = Router::new()
        .route(&at("/api/network"), get(network))
        .route(&at("/api/run"), get(run))
        .route(&at("/api/filters"), get(filters))
        .route(&at("/api/images"), get(images))
        .route(&at("/api/thumb/{kind}/{name}"), get(thumb))
        .route(&at("/api/picture/{kind}/{name}"), get(picture))
        .route(&at("/api/upload"), post(upload))
        .route(&at("/api/input/{kind}/{name}"), get(input))
        .route(&at("/api/classes/{kind}/{name}"), get(classes))
        .route(&at("/api/maps/{kind}/{name}/{layer}"), get(maps))
        .route(&at("/api/project/{kind}/{name}/{layer}/{map}/{place}"), get(project))
        .route(&at("/api/top/{layer}/{map}"), get(top))
        .route(&at("/api/field/{kind}/{name}/{layer}/{map}/{place}"), get(field))
        .route(&at("/api/search"), post(search))
        .route(&at("/api/class/{layer}/{class}"), get(class))
        .route(&at("/api/histogram/{layer}/{map}"), get(histogram))
        .route(&at("/api/preferred/{layer}/{map}"), get(preferred))
        .route(&at("/api/keep"), post(keep));
    for &(name, kind, text) in FILES {
        let file = async move || ([(header::CONTENT_TYPE, kind)], text);
        routes = routes.route(&at(&format!("/{name}")), get(file));
    }
    if !app.base_path.is_empty() {
        let page = at("/");
        routes = routes.route(&app.base_path, get(async move || Redirect::permanent(&page)));
    }
    routes
        .fallback(async || Refusal(StatusCode::NOT_FOUND, "there is no such page".into()))
        .layer(from_fn_with_state(app.clone(), within_time))
        .layer(from_fn_with_state(app.clone(), guarded))
        .layer(map_response_with_state(app.clone(), with_headers))
        .with_state(app)
}

async fn with_headers(State(app): Shared, mut response: Response) -> Response {
    let headers = response.headers_mut();
    if let Ok(instance) = HeaderValue::from_str(&app.instance) {
        headers.insert(HeaderName::from_static(INSTANCE), instance);
    }
    let fixed = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

async fn within_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWERED_WITHIN, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal(StatusCode::REQUEST_TIMEOUT, "this took too long".into()).into_response(),
    }
}

async fn guarded(State(app): Shared, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let in_address = query_token(request.uri());
    let is_page = request.uri().path().strip_prefix(&app.base_path) == Some("/");
    let opens_the_page = is_page && text("sec-fetch-mode") == Some("navigate");
    let claim = Claim {
        host: text("host"),
        origin: text("origin"),
        site: text("sec-fetch-site").filter(|_| !opens_the_page),
        token: in_address.as_deref().or_else(|| cookie(headers, app.port)),
    };
    if let Some(reason) = app.guard.refuses(claim) {
        return Refusal(StatusCode::FORBIDDEN, reason.into()).into_response();
    }
    // The page's own requests know the token by a cookie, and the address bar shows it no longer.
    if let (Some(token), true) = (&in_address, app.guard.token.is_some()) {
        let path = if app.base_path.is_empty() { "/" } else { &app.base_path };
        let name = format!("{COOKIE}{}", app.port);
        // `Lax`, so that a link in a mail works: what others may ask, `Host` and `Origin` decide.
        let cookie = format!("{name}={token}; Path={path}; HttpOnly; SameSite=Lax");
        return ([(header::SET_COOKIE, cookie)], Redirect::to("./")).into_response();
    }
    next.run(request).await
}

fn query_token(uri: &Uri) -> Option<String> {
    let pairs = uri.query()?.split('&');
    pairs.filter_map(|pair| pair.strip_prefix("token=")).map(str::to_owned).next()
}

fn cookie(headers: &HeaderMap, port: u16) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs =
        all.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let is_ours = |name: &str| name.strip_prefix(COOKIE) == Some(port.to_string().as_str());
    pairs.find_map(|(name, value)| is_ours(name).then_some(value))
}

/// The part of an address behind the `?`, as an extractor: what is wrong with it is refused as all else is.
struct Query<T>(T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answered<Self> {
        let read = axum::extract::Query::try_from_uri(&parts.uri);
        Ok(Query(read.map_err(|rejection| bad(rejection.body_text()))?.0))
    }
}

/// What may be said of a picture beside its address.
#[derive(Default, Deserialize)]
struct Altered {
    view: Option<String>,
    cover: Option<String>,
    fill: Option<String>,
}

/// Which weights are meant.
#[derive(Deserialize)]
struct Weights {
    #[serde(default)]
    checkpoint: usize,
    step: Option<u32>,
    weights: Option<String>,
    version: Option<String>,
}

impl App {
    /// What answers about these checkpoints at a port, and what it asks the networks.
    ///
    /// # Errors
    /// If the system gives no random numbers.
    pub(super) fn new<B: Backend>(
        opened: &[Opened<B>],
        settings: Settings,
        port: u16,
    ) -> io::Result<(Self, mpsc::Receiver<Job>)> {
        let Settings { pictures, data_classes, command, guard, base_path } = settings;
        let (sender, jobs) = mpsc::channel(WAITING);
        let views = opened[0].folder.as_deref().map(Views::new);
        let instance = random_name()?;
        let split = |name: &'static str| {
            Some(json!({ "name": name, "count": pictures.split(name)?.len() }))
        };
        let splits: Vec<Value> = ["val", "train"].into_iter().filter_map(split).collect();
        let data_names = data_classes.as_ref().map_or(&[][..], |classes| &classes.names);
        let title = |of: &Opened<B>| of.model.network.architecture.name.clone();
        let names = opened.iter().map(|of| json!({ "title": title(of), "checkpoint": of.name }));
        let names: Vec<Value> = names.collect();
        let shown = |of: &Opened<B>| {
            let layers = listed(&of.model);
            let preprocess = &of.model.preprocess;
            let [rows, columns] = preprocess.size;
            let about = json!({
                "title": title(of),
                "checkpoint": of.name,
                "checkpoints": names,
                "program": concat!("zfnet ", env!("CARGO_PKG_VERSION")),
                "instance": instance,
                "input": { "rows": rows, "columns": columns, "channels": preprocess.channels() },
                "classes": of.model.classes.names,
                "rules": RULES,
                "upload_limit": UPLOAD,
                "can_keep": views.is_some(),
                "layers": layers,
                "splits": splits,
                "data_classes": data_names,
            });
            let checkpoint = of.checkpoint.clone();
            Shown { about, layers, classes: of.model.classes.len(), checkpoint }
        };
        let networks = opened.iter().map(shown).collect();
        let app = App {
            pictures,
            data_classes,
            command,
            guard,
            base_path,
            port,
            instance,
            networks,
            views,
            jobs: sender,
            decoders: Arc::new(Semaphore::new(DECODED_AT_ONCE)),
            uploads: Semaphore::new(UPLOADED_AT_ONCE),
        };
        Ok((app, jobs))
    }

    fn address(&self, kind: &str, name: &str, altered: &Altered) -> Answered<Address> {
        let Altered { view, cover, fill } = altered;
        Address::parse(kind, name, view.as_deref(), cover.as_deref(), fill.as_deref()).map_err(bad)
    }

    /// Runs what decodes pictures on a thread for that, few at a time.
    async fn decoding<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> crate::Result<T> + Send + 'static,
    ) -> Answered<T> {
        let permit = self.decoders.clone().acquire_owned().await.map_err(|_| busy())?;
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _until_it_is_done = permit; // whether or not the client still waits
            work(&app)
        });
        let done = done.await;
        Ok(done.map_err(|_| panicked())??)
    }

    /// The body of a request, which may be a picture of so many bytes.
    async fn received(&self, request: Request, most: usize) -> Answered<Bytes> {
        let too_large = || {
            let sentence = format!("A picture may have {} MiB at most.", most >> 20);
            Refusal(StatusCode::PAYLOAD_TOO_LARGE, sentence)
        };
        // Known before any of it is received.
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let _permit = self.uploads.try_acquire().map_err(|_| busy())?;
        to_bytes(request.into_body(), most).await.map_err(|_| too_large())
    }

    /// What the network of `which` is shown of a picture.
    async fn prepared(
        self: &Arc<Self>,
        which: Which,
        kind: &str,
        name: &str,
        altered: &Altered,
    ) -> Answered<Prepared> {
        let address = self.address(kind, name, altered)?;
        if let Some(kept) = self.pictures.kept(which.checkpoint, &address) {
            return Ok(kept);
        }
        self.decoding(move |app| app.pictures.prepared(which.checkpoint, &address)).await
    }

    /// Asks the networks. If the client leaves, so does the question.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut dyn Questions) -> Answer<T> + Send + 'static,
    ) -> Answered<T> {
        let (reply, answer) = oneshot::channel();
        let job = Job(Box::new(move |networks| {
            if !reply.is_closed() {
                let _ = reply.send(question(networks)); // who asked may have left
            }
        }));
        self.jobs.try_send(job).map_err(|_| busy())?;
        Ok(answer.await.map_err(|_| panicked())??)
    }

    fn network(&self, checkpoint: usize) -> Answered<&Shown> {
        let count = self.networks.len();
        let found = self.networks.get(checkpoint);
        found.ok_or_else(|| bad(format!("checkpoint: expected a number below {count}")))
    }

    /// Which weights are meant, of a checkpoint that there is.
    fn which(&self, Weights { checkpoint, step, weights, version }: Weights) -> Answered<Which> {
        self.network(checkpoint)?;
        let untrained = match weights.as_deref() {
            None | Some("trained") => false,
            Some("random") => true,
            Some(_) => return Err(bad("weights: expected trained or random")),
        };
        let hexadecimal = |version: String| u64::from_str_radix(&version, 16).ok();
        let version = version.map(|version| {
            hexadecimal(version).ok_or_else(|| bad("version: expected that of api/run"))
        });
        Ok(Which { checkpoint, step, untrained, version: version.transpose()? })
    }

    fn layer(&self, which: Which, name: &str) -> Answered<&ListedLayer> {
        let layers = &self.network(which.checkpoint)?.layers;
        let found = layers.iter().find(|layer| layer.name == name);
        found.ok_or_else(|| bad("the network has no such layer"))
    }

    /// The index of a layer, and a map that it has.
    fn map(&self, which: Which, layer: &str, map: &str) -> Answered<(usize, usize)> {
        let layer = self.layer(which, layer)?;
        Ok((layer.index, layer.map(map)?))
    }
}

impl ListedLayer {
    fn map(&self, map: &str) -> Answered<usize> {
        let map = map.parse().ok().filter(|map| *map < self.maps);
        map.ok_or_else(|| bad(format!("{} has {} maps", self.name, self.maps)))
    }

    /// Row and column, from `Y,X`.
    fn place(&self, text: &str) -> Answered<[usize; 2]> {
        let place =
            text.split_once(',').and_then(|(y, x)| Some([y.parse().ok()?, x.parse().ok()?]));
        place.filter(|[y, x]| *y < self.rows && *x < self.columns).ok_or_else(|| {
            bad(format!("expected a row below {} and a column below {}", self.rows, self.columns))
        })
    }
}

fn panicked() -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, PANICKED.into())
}

fn busy() -> Refusal {
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "The program is busy: try again.".into())
}

/// JSON and numbers in one body.
fn frame(about: &impl Serialize, numbers: &[u8]) -> Response {
    let mut json = serde_json::to_vec(about).expect("plain data");
    json.resize(json.len().next_multiple_of(4), b' ');
    let mut bytes = Vec::with_capacity(4 + json.len() + numbers.len());
    bytes.extend((json.len() as u32).to_le_bytes());
    bytes.extend(json);
    bytes.extend(numbers);
    ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}

fn png(image: &Image) -> Answered {
    let bytes = image.png().map_err(|error| bad(error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, "image/png")], bytes).into_response())
}

#[derive(Deserialize)]
struct Of {
    #[serde(default)]
    checkpoint: usize,
}

async fn network(State(app): Shared, Query(Of { checkpoint }): Query<Of>) -> Answered {
    Ok(axum::Json(app.network(checkpoint)?.about.clone()).into_response())
}

async fn run(State(app): Shared, Query(Of { checkpoint }): Query<Of>) -> Answered {
    app.network(checkpoint)?;
    let status = app.decoding(move |app| app.networks[checkpoint].checkpoint.status()).await?;
    Ok(axum::Json(status).into_response())
}

async fn filters(State(app): Shared, Query(weights): Query<Weights>) -> Answered {
    let which = app.which(weights)?;
    png(&app.ask(move |networks| networks.filters(which)).await?)
}

#[derive(Deserialize)]
struct List {
    split: String,
    #[serde(default)]
    from: usize,
    #[serde(default)]
    count: usize,
    class: Option<u32>,
    search: Option<String>,
}

async fn images(State(app): Shared, Query(list): Query<List>) -> Answered {
    let found = app.decoding(move |app| {
        let List { split, from, count, class, search } = list;
        let Some(images) = app.pictures.split(&split) else {
            return Ok(json!({ "total": 0, "images": [] }));
        };
        let wanted = search.unwrap_or_default().to_lowercase();
        let class_names: Vec<String> = app.data_classes.as_ref().map_or_else(Vec::new, |classes| {
            classes.names.iter().map(|name| name.to_lowercase()).collect()
        });
        let is_wanted = |index: &usize| {
            let of = images.class(*index);
            class.is_none_or(|class| class == of)
                && (wanted.is_empty()
                    || class_names.get(of as usize).is_some_and(|name| name.contains(&wanted))
                    || images.name(*index).to_lowercase().contains(&wanted))
        };
        let (mut total, mut listed) = (0, Vec::new());
        for index in (0..images.len()).filter(is_wanted) {
            if total >= from && listed.len() < count.min(LISTED) {
                listed.push(json!({
                    "id": format!("{split}/{index}"),
                    "name": images.name(index),
                    "class": images.class(index),
                }));
            }
            total += 1;
        }
        Ok(json!({ "total": total, "images": listed }))
    });
    Ok(axum::Json(found.await?).into_response())
}

async fn jpeg(app: Arc<App>, kind: &str, name: &str, is_thumb: bool) -> Answered {
    let address = app.address(kind, name, &Altered::default())?;
    let decoded = app.decoding(move |app| {
        let image = app.pictures.shown(&address.source, is_thumb)?;
        image.jpeg().map_err(|error| crate::Error::Data(error.to_string()))
    });
    let kind = [(header::CONTENT_TYPE, "image/jpeg")];
    Ok((kind, decoded.await?).into_response())
}

async fn thumb(State(app): Shared, Path((kind, name)): Path<(String, String)>) -> Answered {
    jpeg(app, &kind, &name, true).await
}

async fn picture(State(app): Shared, Path((kind, name)): Path<(String, String)>) -> Answered {
    jpeg(app, &kind, &name, false).await
}

#[derive(Deserialize)]
struct Taken {
    camera: Option<String>,
}

async fn upload(
    State(app): Shared,
    Query(Taken { camera }): Query<Taken>,
    request: Request,
) -> Answered {
    let bytes = app.received(request, UPLOAD).await?;
    let is_frame = camera.is_some();
    let uploaded = app.decoding(move |app| app.pictures.upload(&bytes, is_frame));
    let (name, [width, height]) = uploaded.await?;
    let id = format!("upload/{name}");
    Ok(axum::Json(json!({ "id": id, "width": width, "height": height })).into_response())
}

async fn input(
    State(app): Shared,
    Path((kind, name)): Path<(String, String)>,
    Query(altered): Query<Altered>,
    Query(weights): Query<Weights>,
) -> Answered {
    let which = app.which(weights)?;
    let prepared = app.prepared(which, &kind, &name, &altered).await?;
    png(&app.pictures.input(which.checkpoint, &prepared))
}

#[derive(Deserialize)]
struct More {
    class: Option<usize>,
}

async fn classes(
    State(app): Shared,
    Path((kind, name)): Path<(String, String)>,
    Query(altered): Query<Altered>,
    Query(weights): Query<Weights>,
    Query(More { class }): Query<More>,
) -> Answered {
    let which = app.which(weights)?;
    let prepared = app.prepared(which, &kind, &name, &altered).await?;
    let classes = app.ask(move |networks| networks.classes(which, &prepared, class)).await?;
    Ok(axum::Json(json!({ "classes": classes })).into_response())
}

async fn maps(
    State(app): Shared,
    Path((kind, name, layer)): Path<(String, String, String)>,
    Query(altered): Query<Altered>,
    Query(weights): Query<Weights>,
) -> Answered {
    let which = app.which(weights)?;
    let layer = app.layer(which, &layer)?.index;
    let prepared = app.prepared(which, &kind, &name, &altered).await?;
    let (about, values) = app.ask(move |networks| networks.maps(which, &prepared, layer)).await?;
    Ok(frame(&about, bytemuck::cast_slice(&values)))
}

#[derive(Deserialize)]
struct How {
    rule: Option<String>,
}

async fn project(
    State(app): Shared,
    Path((kind, name, layer, map, place)): Path<(String, String, String, String, String)>,
    Query(altered): Query<Altered>,
    Query(weights): Query<Weights>,
    Query(How { rule }): Query<How>,
) -> Answered {
    let which = app.which(weights)?;
    let layer = app.layer(which, &layer)?;
    let [y, x] = layer.place(&place)?;
    let rule = Rule::named(rule.as_deref().unwrap_or(RULES[0]))?;
    let unit = Unit { layer: layer.index, map: layer.map(&map)?, y, x, rule };
    let prepared = app.prepared(which, &kind, &name, &altered).await?;
    let question =
        move |networks: &mut dyn Questions| networks.project(which, &prepared, unit, false);
    let (about, values) = app.ask(question).await?;
    Ok(frame(&about, bytemuck::cast_slice(&values)))
}

#[derive(Deserialize)]
struct What {
    what: Option<String>,
}

async fn field(
    State(app): Shared,
    Path((kind, name, layer, map, place)): Path<(String, String, String, String, String)>,
    Query(weights): Query<Weights>,
    Query(What { what }): Query<What>,
) -> Answered {
    let which = app.which(weights)?;
    let layer = app.layer(which, &layer)?;
    let [y, x] = layer.place(&place)?;
    let unit = Unit { layer: layer.index, map: layer.map(&map)?, y, x, rule: Rule::DECONVNET };
    let prepared = app.prepared(which, &kind, &name, &Altered::default()).await?;
    let input = app.pictures.input(which.checkpoint, &prepared);
    let question =
        move |networks: &mut dyn Questions| networks.project(which, &prepared, unit, true);
    let (about, values) = app.ask(question).await?;
    if what.as_deref() != Some("projection") {
        return png(&input.crop(about.field));
    }
    if values.is_empty() {
        let sentence = "This unit does not fire here: the image has changed since it was searched.";
        return Err(Refusal(StatusCode::CONFLICT, sentence.into()));
    }
    png(&Image::projection(about.columns, about.rows, &values).crop(about.field))
}

/// The weights that a checkpoint stands for now: what others are asked for is refused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Newest {
    #[serde(default)]
    checkpoint: usize,
    version: Option<String>,
}

impl From<Newest> for Weights {
    fn from(Newest { checkpoint, version }: Newest) -> Self {
        Weights { checkpoint, step: None, weights: None, version }
    }
}

async fn search(State(app): Shared, Query(newest): Query<Newest>) -> Answered {
    let which = app.which(newest.into())?;
    let progress = app.ask(move |networks| networks.start_search(which)).await?;
    Ok(axum::Json(progress).into_response())
}

async fn top(
    State(app): Shared,
    Path((layer, map)): Path<(String, String)>,
    Query(newest): Query<Newest>,
) -> Answered {
    let which = app.which(newest.into())?;
    let (layer, map) = app.map(which, &layer, &map)?;
    let top = app.ask(move |networks| networks.top(which, layer, map)).await?;
    Ok(axum::Json(top).into_response())
}

async fn class(
    State(app): Shared,
    Path((layer, class)): Path<(String, String)>,
    Query(weights): Query<Weights>,
) -> Answered {
    let which = app.which(weights)?;
    let layer = app.layer(which, &layer)?.index;
    let classes = app.network(which.checkpoint)?.classes;
    let class = class.parse().ok().filter(|class| *class < classes);
    let class = class.ok_or_else(|| bad(format!("the network has {classes} classes")))?;
    let found = app.ask(move |networks| networks.of_class(which, layer, class)).await?;
    Ok(axum::Json(found).into_response())
}

async fn histogram(
    State(app): Shared,
    Path((layer, map)): Path<(String, String)>,
    Query(weights): Query<Weights>,
) -> Answered {
    let which = app.which(weights)?;
    let (layer, map) = app.map(which, &layer, &map)?;
    let found = app.ask(move |networks| networks.histogram(which, layer, map)).await?;
    Ok(axum::Json(found).into_response())
}

async fn preferred(
    State(app): Shared,
    Path((layer, map)): Path<(String, String)>,
    Query(weights): Query<Weights>,
) -> Answered {
    let which = app.which(weights)?;
    let (layer, map) = app.map(which, &layer, &map)?;
    let (about, image) = app.ask(move |networks| networks.preferred(which, layer, map)).await?;
    Ok(frame(&about, &image.pixels))
}

#[derive(Deserialize)]
struct Captions {
    #[serde(default)]
    title: String,
    #[serde(default)]
    caption: String,
    #[serde(default)]
    link: String,
}

async fn keep(
    State(app): Shared,
    Query(Captions { title, caption, link }): Query<Captions>,
    request: Request,
) -> Answered {
    let meant = request.headers().get(INSTANCE).and_then(|value| value.to_str().ok());
    if meant.is_some_and(|instance| instance != app.instance) {
        let sentence = "Another program answers here by now: reload the page.";
        return Err(Refusal(StatusCode::CONFLICT, sentence.into()));
    }
    let bytes = app.received(request, VIEW).await?;
    let kept = app.decoding(move |app| {
        let views = app.views.as_ref().ok_or_else(|| {
            let reason = "Views cannot be kept: the first checkpoint is in no run, or another command keeps its own in \
                          the run's report.";
            crate::Error::Data(reason.into())
        })?;
        views.add(&bytes, Words { title, caption, link }, &app.command)
    });
    Ok(axum::Json(json!({ "kept": kept.await? })).into_response())
}
