//! What the page asks for over HTTP. All addresses are relative to the page, so that it works behind any prefix.
//!
//! ```text
//! ./                                   the page, and its scripts and styles beside it
//! api/network                          layers, classes, splits                            JSON
//! api/images?split&from&count          images of a split [class, search]                  JSON
//! api/thumb/IMAGE, api/picture/IMAGE   a picture, small or large                          JPEG
//! api/upload                           takes a JPEG or PNG, gives its IMAGE               JSON
//! api/input/IMAGE                      what the network sees                              PNG
//! api/classes/IMAGE                    the five most probable classes [class: one more]   JSON
//! api/maps/IMAGE/LAYER                 all maps of a layer                                frame
//! api/project/IMAGE/LAYER/MAP/Y,X      a unit's projection [rule, weights=random]; no     frame
//!                                      numbers if it did not fire
//! api/top/LAYER/MAP                    the strongest activations over the data set        JSON
//! api/field/IMAGE/LAYER/MAP/Y,X        a unit's receptive field [what=projection]          PNG
//! api/status                           how far the search for these is                    JSON
//! ```
//!
//! `IMAGE` is `val/N`, `train/N` or `upload/NAME`; `?view` and `?cover` (with `fill`) change what is shown of it
//! (address.rs). A frame is the length of some JSON (u32, little endian), that JSON, and numbers.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_io_timeout::TimeoutStream;

use super::address::Address;
use super::engine::{Answer, Ask, Asked, By, Job, ListedLayer, Projection, Top, listed};
use super::guard::{Claim, Guard};
use super::pictures::{Pictures, Prepared};
use crate::backend::Backend;
use crate::data::classes::Classes;
use crate::model::{Model, Rule};
use crate::picture::Image;

/// Bytes of an upload.
const UPLOAD: usize = 32 << 20;
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

/// Nothing but what comes from here, and no script or style within the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
                      connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'self'";

/// A file of the page: its name, its type, what is in it.
type File = (&'static str, &'static str, &'static str);

const fn script(name: &'static str, text: &'static str) -> File {
    (name, "text/javascript; charset=utf-8", text)
}

/// The files of the page.
const FILES: &[File] = &[
    ("", "text/html; charset=utf-8", include_str!("page/index.html")),
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
    /// The checkpoint, as pages show it.
    pub checkpoint: String,
    /// Where the pictures are from.
    pub pictures: Pictures,
    /// Classes of the data set's images.
    pub data_classes: Option<Classes>,
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

struct App {
    pictures: Pictures,
    data_classes: Option<Classes>,
    guard: Guard,
    base_path: String,
    port: u16,
    /// What `api/network` says.
    network: Value,
    layers: Vec<ListedLayer>,
    jobs: mpsc::Sender<Job>,
    decoders: Arc<Semaphore>,
    uploads: Semaphore,
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

fn bad(sentence: impl Into<String>) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, sentence.into())
}

/// Begins to answer on a socket, in threads that end with the program.
///
/// # Errors
/// If the system gives no thread, or the socket is none to serve on.
pub fn listen<B: Backend>(
    socket: TcpListener,
    model: &Model<B>,
    settings: Settings,
) -> io::Result<Listening> {
    let Settings { checkpoint, pictures, data_classes, guard, base_path } = settings;
    let address = socket.local_addr()?;
    let (sender, jobs) = mpsc::channel(WAITING);
    let layers = listed(model);
    let [rows, columns] = model.preprocess.size;
    let split =
        |name: &'static str| Some(json!({ "name": name, "count": pictures.split(name)?.len() }));
    let splits: Vec<Value> = ["val", "train"].into_iter().filter_map(split).collect();
    let data_names = data_classes.as_ref().map_or(&[][..], |classes| &classes.names);
    let network = json!({
        "title": model.network.architecture.name,
        "checkpoint": checkpoint,
        "program": concat!("zfnet ", env!("CARGO_PKG_VERSION")),
        "input": { "rows": rows, "columns": columns, "channels": model.preprocess.channels() },
        "classes": model.classes.names,
        "rules": RULES,
        "random": true,
        "upload_limit": UPLOAD,
        "layers": layers,
        "splits": splits,
        "data_classes": data_names,
    });
    let app = Arc::new(App {
        pictures,
        data_classes,
        guard,
        base_path,
        port: address.port(),
        network,
        layers,
        jobs: sender,
        decoders: Arc::new(Semaphore::new(DECODED_AT_ONCE)),
        uploads: Semaphore::new(UPLOADED_AT_ONCE),
    });
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1) // what computes is elsewhere
        .max_blocking_threads(4)
        .enable_all()
        .build()?;
    std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async {
            match tokio::net::TcpListener::from_std(socket) {
                Ok(socket) => accept(socket, router(app)).await,
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

fn router(app: Arc<App>) -> Router {
    let at = |path: &str| format!("{}{path}", app.base_path);
    let mut routes = Router::new()
        .route(&at("/api/network"), get(network))
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
        .route(&at("/api/status"), get(status));
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
        .layer(map_response(with_headers))
        .with_state(app)
}

async fn with_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
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

/// What may be said of a picture beside its address.
#[derive(Default, Deserialize)]
struct Shown {
    view: Option<String>,
    cover: Option<String>,
    fill: Option<String>,
}

impl App {
    fn address(&self, kind: &str, name: &str, shown: &Shown) -> Answered<Address> {
        let Shown { view, cover, fill } = shown;
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
        Ok(done.map_err(|_| bad("this picture could not be read: an error of the program"))??)
    }

    async fn prepared(
        self: &Arc<Self>,
        kind: &str,
        name: &str,
        shown: &Shown,
    ) -> Answered<Prepared> {
        let address = self.address(kind, name, shown)?;
        if let Some(kept) = self.pictures.kept(&address) {
            return Ok(kept);
        }
        self.decoding(move |app| app.pictures.prepared(&address)).await
    }

    /// Asks the network. If the client leaves, so does the question.
    async fn ask(&self, ask: Ask) -> Answered<Answer> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(Job { ask, reply }).map_err(|_| busy())?;
        Ok(answer.await.map_err(|_| busy())??)
    }

    fn layer(&self, name: &str) -> Answered<&ListedLayer> {
        let found = self.layers.iter().find(|layer| layer.name == name);
        found.ok_or_else(|| bad("the network has no such layer"))
    }

    fn map(&self, layer: &str, map: &str) -> Answered<(usize, usize)> {
        let layer = self.layer(layer)?;
        let map = map.parse().ok().filter(|map| *map < layer.maps);
        Ok((
            layer.index,
            map.ok_or_else(|| bad(format!("{} has {} maps", layer.name, layer.maps)))?,
        ))
    }

    async fn projection(&self, of: Prepared, unit: Asked) -> Answered<(Projection, Vec<f32>)> {
        match self.ask(Ask::Project(of, unit)).await? {
            Answer::Projection(about, values) => Ok((about, values)),
            _ => Err(busy()),
        }
    }

    async fn top(&self, layer: &str, map: &str) -> Answered<Top> {
        let (layer, map) = self.map(layer, map)?;
        match self.ask(Ask::Top { layer, map }).await? {
            Answer::Top(top) => Ok(top),
            _ => Err(busy()),
        }
    }
}

impl ListedLayer {
    /// Row and column, from `Y,X`.
    fn place(&self, text: &str) -> Answered<[usize; 2]> {
        let place =
            text.split_once(',').and_then(|(y, x)| Some([y.parse().ok()?, x.parse().ok()?]));
        place.filter(|[y, x]| *y < self.rows && *x < self.columns).ok_or_else(|| {
            bad(format!("expected a row below {} and a column below {}", self.rows, self.columns))
        })
    }
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

async fn network(State(app): Shared) -> axum::Json<Value> {
    axum::Json(app.network.clone())
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
    let address = app.address(kind, name, &Shown::default())?;
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
    let too_large = || {
        let most = UPLOAD >> 20;
        Refusal(StatusCode::PAYLOAD_TOO_LARGE, format!("A picture may have {most} MiB at most."))
    };
    // Known before any of it is received.
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > UPLOAD) {
        return Err(too_large());
    }
    let _permit = app.uploads.try_acquire().map_err(|_| busy())?;
    let bytes = to_bytes(request.into_body(), UPLOAD).await.map_err(|_| too_large())?;
    let is_frame = camera.is_some();
    let uploaded = app.decoding(move |app| app.pictures.upload(&bytes, is_frame));
    let (name, [width, height]) = uploaded.await?;
    let id = format!("upload/{name}");
    Ok(axum::Json(json!({ "id": id, "width": width, "height": height })).into_response())
}

async fn input(
    State(app): Shared,
    Path((kind, name)): Path<(String, String)>,
    Query(shown): Query<Shown>,
) -> Answered {
    let prepared = app.prepared(&kind, &name, &shown).await?;
    png(&app.pictures.input(&prepared))
}

#[derive(Deserialize)]
struct Also {
    class: Option<usize>,
}

async fn classes(
    State(app): Shared,
    Path((kind, name)): Path<(String, String)>,
    Query(shown): Query<Shown>,
    Query(Also { class }): Query<Also>,
) -> Answered {
    let prepared = app.prepared(&kind, &name, &shown).await?;
    match app.ask(Ask::Classes(prepared, class)).await? {
        Answer::Classes(classes) => Ok(axum::Json(json!({ "classes": classes })).into_response()),
        _ => Err(busy()),
    }
}

async fn maps(
    State(app): Shared,
    Path((kind, name, layer)): Path<(String, String, String)>,
    Query(shown): Query<Shown>,
) -> Answered {
    let layer = app.layer(&layer)?.index;
    let prepared = app.prepared(&kind, &name, &shown).await?;
    match app.ask(Ask::Maps(prepared, layer)).await? {
        Answer::Maps(about, values) => Ok(frame(&about, bytemuck::cast_slice(&values))),
        _ => Err(busy()),
    }
}

#[derive(Deserialize)]
struct How {
    rule: Option<String>,
    weights: Option<String>,
}

async fn project(
    State(app): Shared,
    Path((kind, name, layer, map, place)): Path<(String, String, String, String, String)>,
    Query(shown): Query<Shown>,
    Query(how): Query<How>,
) -> Answered {
    let of_layer = app.layer(&layer)?;
    let (layer, map) = app.map(&layer, &map)?;
    let [y, x] = of_layer.place(&place)?;
    let rule = Rule::named(how.rule.as_deref().unwrap_or(RULES[0]))?;
    let by = if how.weights.as_deref() == Some("random") { By::Untrained } else { By::Page };
    let unit = Asked { layer, map, y, x, rule, by };
    let prepared = app.prepared(&kind, &name, &shown).await?;
    let (about, values) = app.projection(prepared, unit).await?;
    Ok(frame(&about, bytemuck::cast_slice(&values)))
}

async fn top(State(app): Shared, Path((layer, map)): Path<(String, String)>) -> Answered {
    Ok(axum::Json(app.top(&layer, &map).await?).into_response())
}

#[derive(Deserialize)]
struct What {
    what: Option<String>,
}

async fn field(
    State(app): Shared,
    Path((kind, name, layer, map, place)): Path<(String, String, String, String, String)>,
    Query(What { what }): Query<What>,
) -> Answered {
    let [y, x] = app.layer(&layer)?.place(&place)?;
    let (layer, map) = app.map(&layer, &map)?;
    let prepared = app.prepared(&kind, &name, &Shown::default()).await?;
    let unit = Asked { layer, map, y, x, rule: Rule::DECONVNET, by: By::Beside };
    let input = app.pictures.input(&prepared);
    let (about, values) = app.projection(prepared, unit).await?;
    if what.as_deref() != Some("projection") {
        return png(&input.crop(about.field));
    }
    if values.is_empty() {
        let sentence = "This unit does not fire here: the image has changed since it was searched.";
        return Err(Refusal(StatusCode::CONFLICT, sentence.into()));
    }
    png(&Image::projection(about.columns, about.rows, &values).crop(about.field))
}

async fn status(State(app): Shared) -> Answered {
    match app.ask(Ask::Status).await? {
        Answer::Status(progress) => Ok(axum::Json(progress).into_response()),
        _ => Err(busy()),
    }
}
