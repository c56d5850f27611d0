//! The built-in demo's pictures, drawn by ourselves, as a folder of PNG files.
//!
//! Each picture shows one of ten shapes: a signed distance f, negative inside, from one table.
//! f is evaluated once a pixel, in the shape's own coordinates (`Pose`: place, scale, stretch,
//! turn, mirror, perspective), and that one field gives the antialiased outline, the rounded edge
//! that takes the light (its gradient), and the cast shadow (itself, displaced). The surface is
//! striped, checked, dotted, zigzagged, cloudy or shaded; behind it lie clouds and clutter, and
//! sometimes a bar lies across it.
//!
//! The class decides f, and the hue of two figures in three. All else (other colours, texture, light, place
//! and pose) comes from one distribution for all classes, and figure and ground may each be the
//! brighter one. So a linear classifier on pixels finds little; a network finds colours soon, and has
//! to go on to edges, then corners and arcs, then how they lie to each other.
//!
//! Only `+ - * /`, `sqrt`, `floor` and comparisons of f32 are used, no library sine or power:
//! a picture is the same bit for bit on every machine, and a test pins its checksum.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{fs, io};

/// The classes, in the order of the labels; also the names of the folders.
pub const CLASSES: [&str; 10] =
    ["arrow", "crescent", "cross", "disc", "gear", "ring", "spiral", "square", "star", "triangle"];

/// For each class its signed distance, in coordinates in which the shape has a radius near 1.
const SHAPES: [fn(V) -> f32; 10] =
    [arrow, crescent, cross, disc, gear, ring, spiral, square, star, triangle];

/// Part of every picture's seed and of the marker file: raise it when the pictures change.
const VERSION: u64 = 2;

/// Share of pictures in which the figure has its class's hue, give or take a thirtieth of the circle.
const TYPICAL: f32 = 0.667;

/// The file in the root of a tree that says what the tree is, and that it is ours.
const MARKER: &str = "synthetic.json";

/// Training pictures are numbered from 0, validation pictures from here: they never meet.
const FIRST_VAL: u64 = 1 << 32;

/// Draws image `index` of `class`: side*side*3 bytes, row-major RGB. A pure function of its arguments.
///
/// # Panics
/// If `class` is not below `CLASSES.len()`.
pub fn draw(seed: u64, class: usize, index: u64, side: usize) -> Vec<u8> {
    let (shape, dice) = (SHAPES[class], &mut Dice::new(seed, class, index));
    let mut canvas = Canvas { side, pixels: vec![[0.0; 3]; side * side] };
    let sides = side as f32;

    // The ground: two colours blended along a direction, with clouds; then the clutter on it.
    let near = dice.colour(0.4);
    let far = blend(near, dice.colour(0.4), dice.range(0.3, 0.8));
    let sky = Texture::new(CLOUDS, dice.range(3.0, 9.0), sides, dice);
    let (along, depth) = (dice.direction(), dice.range(0.4, 1.2));
    canvas.paint(|_, p, _| {
        let ramp = dot(along, p) - 0.5 * (along[0] + along[1]);
        blend(near, far, 0.5 + ramp + depth * (sky.at(p) - 0.5))
    });
    for _ in 0..2 + dice.below(5) {
        let (start, way) = ([dice.unit(), dice.unit()], dice.direction());
        let (length, thick) = match dice.below(2) {
            0 => (dice.range(0.1, 0.3), dice.range(0.008, 0.02)), // a stroke
            _ => (dice.range(0.0, 0.05), dice.range(0.02, 0.04)), // a blob
        };
        canvas.bar(start, way, length, thick, dice.colour(0.2));
    }

    // The figure: its shadow on the ground, then its surface in two colours, lit.
    let pose = Pose::new(dice);
    let field = Field { side, f: grid(side).map(|p| shape(pose.map(p))).collect() };
    let (light, middle) = (Light::new(dice), blend(near, far, 0.5));
    let texture = Texture::new(dice.below(6), dice.range(1.2, 3.2), pose.scale * sides, dice);
    let typical = dice.unit() < TYPICAL;
    let (paint, ink) = loop {
        let ink = dice.colour(0.1);
        let hue = match typical {
            true => 0.6 * class as f32 + dice.range(-0.2, 0.2),
            false => 6.0 * dice.unit(),
        };
        let paint = dice.colour_of(hue, 0.1);
        if apart(paint, middle) > 0.5 && apart(ink, middle) > 0.4 && apart(paint, ink) > 0.25 {
            break (paint, ink);
        }
    };
    let (bevel, unit) = (dice.range(0.15, 0.6), pose.scale * sides);
    let (dx, dy) = (light.reach * light.toward[0] * sides, light.reach * light.toward[1] * sides);
    canvas.paint(|[x, y], p, under| {
        let f = field.at(x, y);
        let shade = light.shadow * smooth(0.5 - 5.0 * field.at(x + dx as isize, y + dy as isize));
        let ground = under.map(|c| c * (1.0 - shade));
        let cover = 0.5 - f * unit;
        if cover <= 0.0 {
            return ground;
        }
        let surface = blend(paint, ink, texture.at(pose.map(p)));
        let tilt = (1.0 + f / bevel).clamp(0.0, 1.0);
        let normal = field.slope(x, y, unit).map(|d| d * tilt);
        blend(ground, light.on(surface, normal), cover)
    });

    // In front of it, in one picture of three, a bar; at last the sensor's noise.
    if dice.below(3) == 0 {
        let (d, aside, [x, y]) = (dice.direction(), dice.range(-0.2, 0.2), pose.centre);
        let start = [x - d[0] - d[1] * aside, y - d[1] + d[0] * aside];
        canvas.bar(start, d, 2.0, dice.range(0.012, 0.035), dice.colour(0.2));
    }
    let sensor = dice.range(0.02, 0.1);
    let mut byte = |c: f32| {
        let c = c + sensor * (dice.unit() - 0.5);
        (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8
    };
    canvas.pixels.iter().flatten().map(|&c| byte(c)).collect()
}

/// Writes the tree `root/{train,val}/CLASS/00000.png`, in parallel. `progress` is told, from many
/// threads, how many pictures are written so far.
///
/// A complete tree of the same parameters is recognised by its marker and left alone. An empty
/// folder is filled, and a tree with our marker (other parameters, or interrupted) is made anew.
/// Any other folder is an error: no file is deleted or replaced that is not ours.
pub fn write_folder(
    root: &Path,
    seed: u64,
    side: usize,
    train_per_class: usize,
    val_per_class: usize,
    progress: impl Fn(usize) + Sync,
) -> io::Result<()> {
    let mut wanted = json!({
        "generator": "zfnet synthetic", "version": VERSION, "seed": seed, "side": side,
        "train_per_class": train_per_class, "val_per_class": val_per_class, "complete": true,
    });
    let save = |marker: &Value| {
        let aside = root.join(format!("{MARKER}.tmp"));
        fs::write(&aside, format!("{marker:#}\n"))?;
        fs::rename(&aside, root.join(MARKER))
    };

    fs::create_dir_all(root)?;
    match read_marker(root) {
        Some(found) if found == wanted => return Ok(()),
        Some(mut found) => {
            found["complete"] = false.into(); // should we be interrupted while we delete
            save(&found)?;
            let count = |key: &str| found[key].as_u64().unwrap_or(0) as usize;
            for (path, ..) in pictures(root, count("train_per_class"), count("val_per_class")) {
                fs::remove_file(path).or_else(|e| match e.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(e),
                })?;
            }
        }
        None if fs::read_dir(root)?.all(|entry| entry.is_ok_and(is_aside)) => {}
        None => {
            let advice = "is not empty and has no synthetic.json of ours: name a new or empty one";
            let why = format!("the folder {} {advice}", root.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
    }
    wanted["complete"] = false.into();
    save(&wanted)?; // from here on the folder is ours
    for (split, class) in ["train", "val"].iter().flat_map(|s| CLASSES.map(|c| (s, c))) {
        fs::create_dir_all(root.join(split).join(class))?;
    }
    let written = AtomicUsize::new(0);
    let all = pictures(root, train_per_class, val_per_class);
    all.par_iter().try_for_each(|&(ref path, class, index)| {
        let picture = draw(seed, class, index, side);
        image::save_buffer(path, &picture, side as u32, side as u32, image::ColorType::Rgb8)
            .map_err(io::Error::other)?;
        progress(written.fetch_add(1, Ordering::Relaxed) + 1);
        io::Result::Ok(())
    })?;
    wanted["complete"] = true.into();
    save(&wanted)
}

/// Every picture of a tree: its path, class and index.
fn pictures(root: &Path, train: usize, val: usize) -> Vec<(PathBuf, usize, u64)> {
    let mut all = Vec::new();
    for (split, count, first) in [("train", train, 0), ("val", val, FIRST_VAL)] {
        for (class, name) in CLASSES.iter().enumerate() {
            let folder = root.join(split).join(name);
            let file = |i| (folder.join(format!("{i:05}.png")), class, first + i as u64);
            all.extend((0..count).map(file));
        }
    }
    all
}

/// Whether a kill has left it where the marker was to be written first of all.
fn is_aside(entry: fs::DirEntry) -> bool {
    entry.file_name().to_str() == Some(&format!("{MARKER}.tmp"))
}

fn read_marker(root: &Path) -> Option<Value> {
    let marker: Value = serde_json::from_slice(&fs::read(root.join(MARKER)).ok()?).ok()?;
    (marker["generator"] == "zfnet synthetic").then_some(marker)
}

// ---- The ten shapes: true distances near the outline, a rough measure farther off.

fn arrow([x, y]: V) -> f32 {
    let head = (0.05 - x).max(0.66 * x + 0.75 * y.abs() - 0.62);
    rectangle([x + 0.4, y], [0.55, 0.17]).min(head)
}

fn crescent([x, y]: V) -> f32 {
    (length([x, y]) - 0.95).max(0.72 - length([x - 0.48, y]))
}

fn cross(p: V) -> f32 {
    rectangle(p, [0.92, 0.27]).min(rectangle(p, [0.27, 0.92]))
}

fn disc(p: V) -> f32 {
    length(p) - 0.85
}

/// One of eight teeth, reached by mirrors into an eighth and then a sixteenth of the plane.
fn gear([x, y]: V) -> f32 {
    let (r, x, y) = (length([x, y]), x.abs(), y.abs());
    let p = mirror([x.max(y), x.min(y)], [-0.382_683, 0.923_880]);
    (r - 0.74).min(rectangle(p, [0.98, 0.13])).max(0.3 - r)
}

fn ring(p: V) -> f32 {
    (length(p) - 0.68).abs() - 0.22
}

/// Half circles about two centres in turn, each going on where the last one ends: 2 turns.
fn spiral([x, y]: V) -> f32 {
    const STEP: f32 = 0.195; // between the centres: the turns are two steps apart
    let x = x + 0.5 * STEP;
    let (r, inner) = match y < 0.0 {
        true => (length([x, y]), 0.15),
        false => (length([x - STEP, y]), 0.15 + STEP),
    };
    let turns = (r - inner).abs().min((r - inner - 2.0 * STEP).abs());
    let ends = length([x - 0.15, y]).min(length([x - 0.15 - 4.0 * STEP, y]));
    turns.min(ends) - 0.1
}

fn square(p: V) -> f32 {
    rectangle(p, [0.72, 0.72])
}

/// Mirrored into a tenth of the plane, where the outline is a single segment.
fn star([x, y]: V) -> f32 {
    const C36: f32 = 0.809_017;
    const S36: f32 = 0.587_785;
    let [x, y] = mirror(mirror([x.abs(), y], [C36, -S36]), [-C36, -S36]);
    let (p, edge) = ([x.abs(), y - 1.0], [0.42 * S36, 0.42 * C36 - 1.0]);
    let t = (dot(p, edge) / dot(edge, edge)).clamp(0.0, 1.0);
    let d = length([p[0] - t * edge[0], p[1] - t * edge[1]]);
    if p[1] * edge[0] > p[0] * edge[1] { d } else { -d }
}

fn triangle([x, y]: V) -> f32 {
    (0.866 * x.abs() - 0.5 * y).max(y) - 0.5
}

fn rectangle([x, y]: V, half: V) -> f32 {
    let (x, y) = (x.abs() - half[0], y.abs() - half[1]);
    length([x.max(0.0), y.max(0.0)]) + x.max(y).min(0.0)
}

/// Brings p to that side of a line through 0 on which dot(p, normal) is not positive.
fn mirror(p: V, normal: V) -> V {
    let over = 2.0 * dot(p, normal).max(0.0);
    [p[0] - over * normal[0], p[1] - over * normal[1]]
}

// ---- Where the shape lies, what it is made of, what light falls on it.

/// The way from the picture's coordinates, 0 to 1, to the shape's, about -1 to 1.
struct Pose {
    centre: V,
    scale: f32, // the shape's unit, as a share of the picture
    lean: V,    // perspective: the far side is drawn smaller
    axis: V,    // of the stretch
    stretch: f32,
    turn: V, // cosine and sine
    hand: f32,
}

impl Pose {
    fn new(dice: &mut Dice) -> Pose {
        let scale = dice.range(0.29, 0.44);
        let reach = 0.5 - 0.9 * scale; // so that little of the shape lies outside
        let centre = [0.5 + dice.range(-reach, reach), 0.5 + dice.range(-reach, reach)];
        let (tip, lean) = (dice.direction(), dice.range(0.0, 0.6));
        Pose {
            centre,
            scale,
            lean: [lean * tip[0], lean * tip[1]],
            axis: dice.direction(),
            stretch: dice.range(0.0, 0.4),
            turn: dice.direction(),
            hand: [1.0, -1.0][dice.below(2)],
        }
    }

    fn map(&self, p: V) -> V {
        let p = [p[0] - self.centre[0], p[1] - self.centre[1]];
        let size = 1.0 / (self.scale * (1.0 + dot(self.lean, p)).max(0.3));
        let along = self.stretch * dot(self.axis, p);
        let (x, y) = (size * (p[0] + along * self.axis[0]), size * (p[1] + along * self.axis[1]));
        let [c, s] = self.turn;
        [self.hand * (c * x + s * y), c * y - s * x]
    }
}

/// A pattern over the plane, 0 to 1, its edges one pixel soft.
struct Texture {
    kind: usize,
    along: V,
    frequency: f32,
    edge: f32, // by how much a wave rises in one pixel
    salt: u32,
}

const CLOUDS: usize = 0;

impl Texture {
    /// `pixels`: how many of them are one unit of the plane.
    fn new(kind: usize, frequency: f32, pixels: f32, dice: &mut Dice) -> Texture {
        let edge = 4.0 * frequency / pixels;
        Texture { kind, along: dice.direction(), frequency, edge, salt: dice.bits() }
    }

    fn at(&self, p: V) -> f32 {
        let [c, s] = self.along.map(|a| a * self.frequency);
        let (x, y) = (c * p[0] + s * p[1], c * p[1] - s * p[0]);
        let crisp = |v: f32| (0.5 + v / self.edge).clamp(0.0, 1.0);
        match self.kind {
            CLOUDS => clouds([x, y], self.salt),
            1 => crisp(wave(x)),                            // stripes
            2 => crisp(wave(x) * wave(y)),                  // checks
            3 => crisp(0.62 - length([wave(x), wave(y)])),  // dots
            4 => crisp(wave(x + 0.3 * wave(y))),            // zigzags
            _ => (0.5 + 0.5 * dot(p, self.along)).max(0.0), // a gradient
        }
    }
}

/// A lamp somewhere beyond the picture's upper half.
struct Light {
    toward: V,
    height: f32, // sine of its angle over the picture's plane
    ambient: f32,
    gloss: f32,
    shadow: f32, // how dark
    reach: f32,  // how far it falls, as a share of the picture
}

impl Light {
    fn new(dice: &mut Dice) -> Light {
        let [x, y] = dice.direction();
        Light {
            toward: [x, -y.abs()],
            height: dice.range(0.45, 0.85),
            ambient: dice.range(0.25, 0.55),
            gloss: dice.range(0.0, 0.4),
            shadow: dice.range(0.3, 0.65),
            reach: dice.range(0.02, 0.07),
        }
    }

    /// Lights a surface whose unit normal is (normal, up). A flat one keeps its colour; a rounded
    /// edge shows a highlight, (n . h)^16 with h halfway between the lamp and the eye.
    fn on(&self, surface: C, normal: V) -> C {
        let tilt = dot(normal, normal).min(1.0);
        let (up, low) = ((1.0 - tilt).sqrt(), (1.0 - self.height * self.height).sqrt());
        let facing = up * self.height + low * dot(normal, self.toward);
        let diffuse = self.ambient + (1.0 - self.ambient) * facing.max(0.0) / self.height;
        let half = (facing + up).max(0.0) / (2.0 + 2.0 * self.height).sqrt();
        let fourth = half * half * half * half;
        let glint = fourth * fourth * fourth * fourth * self.gloss * tilt.sqrt().min(0.6);
        surface.map(|c| c * diffuse + glint)
    }
}

// ---- Drawing. Positions are 0 to 1 over the picture, colours are red, green, blue from 0 to 1.

type V = [f32; 2];
type C = [f32; 3];

struct Canvas {
    side: usize,
    pixels: Vec<C>,
}

impl Canvas {
    /// Repaints each pixel from its column and row, its centre, and its old colour.
    fn paint(&mut self, new: impl Fn([isize; 2], V, C) -> C) {
        for ((i, pixel), p) in self.pixels.iter_mut().enumerate().zip(grid(self.side)) {
            *pixel = new([(i % self.side) as isize, (i / self.side) as isize], p, *pixel);
        }
    }

    /// A round-ended bar from `start` along `way`, lit from above as a rod is.
    fn bar(&mut self, start: V, way: V, long: f32, thick: f32, tint: C) {
        let side = self.side as f32;
        self.paint(|_, p, under| {
            let p = [p[0] - start[0], p[1] - start[1]];
            let t = dot(p, way).clamp(0.0, long);
            let off = [p[0] - t * way[0], p[1] - t * way[1]];
            let cover = 0.5 + (thick - length(off)) * side;
            if cover <= 0.0 {
                return under;
            }
            blend(under, tint.map(|c| c * (1.0 - 0.3 * off[1] / thick)), cover)
        });
    }
}

/// The centre of every pixel, row by row.
fn grid(side: usize) -> impl Iterator<Item = V> {
    let at = move |i: usize| (i as f32 + 0.5) / side as f32;
    (0..side).flat_map(move |y| (0..side).map(move |x| [at(x), at(y)]))
}

/// A shape's signed distance at every pixel, going on unchanged beyond the border.
struct Field {
    side: usize,
    f: Vec<f32>,
}

impl Field {
    fn at(&self, x: isize, y: isize) -> f32 {
        let inside = |v: isize| v.clamp(0, self.side as isize - 1) as usize;
        self.f[inside(y) * self.side + inside(x)]
    }

    /// Its gradient, of length 1 or, on a ridge, less; `unit`: pixels in a unit of distance.
    fn slope(&self, x: isize, y: isize, unit: f32) -> V {
        let dx = self.at(x + 1, y) - self.at(x - 1, y);
        let dy = self.at(x, y + 1) - self.at(x, y - 1);
        [dx, dy].map(|d| d / length([dx, dy]).max(2.0 / unit))
    }
}

fn dot(a: V, b: V) -> f32 {
    a[0] * b[0] + a[1] * b[1]
}

fn length(p: V) -> f32 {
    dot(p, p).sqrt()
}

fn smooth(t: f32) -> f32 {
    let t = t.clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

fn blend(a: C, b: C, t: f32) -> C {
    let t = t.clamp(0.0, 1.0);
    [0, 1, 2].map(|i| a[i] + (b[i] - a[i]) * t)
}

fn apart(a: C, b: C) -> f32 {
    let [r, g, b] = [0, 1, 2].map(|i| (a[i] - b[i]) * (a[i] - b[i]));
    (r + g + b).sqrt()
}

/// A triangle wave, -1 to 1, of period 1.
fn wave(x: f32) -> f32 {
    4.0 * (x - x.floor() - 0.5).abs() - 1.0
}

/// Three octaves of smoothly joined random lattice values.
fn clouds([x, y]: V, salt: u32) -> f32 {
    let lattice = |i: u32, j: u32| {
        let h = i.wrapping_mul(0x9E37_79B1) ^ j.wrapping_mul(0x85EB_CA77) ^ salt;
        let h = (h ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
        let h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
        (h >> 8) as f32 / 16_777_216.0
    };
    let octave = |x: f32, y: f32| {
        let (i, j) = (x.floor() as i32 as u32, y.floor() as i32 as u32);
        let (u, v) = (smooth(x - x.floor()), smooth(y - y.floor()));
        let row = |j| {
            let (a, b) = (lattice(i, j), lattice(i.wrapping_add(1), j));
            a + (b - a) * u
        };
        let (a, b) = (row(j), row(j.wrapping_add(1)));
        a + (b - a) * v - 0.5
    };
    let sum = octave(x, y) + 0.5 * octave(2.0 * x, 2.0 * y) + 0.25 * octave(4.0 * x, 4.0 * y);
    (0.5 + 0.8 * sum).clamp(0.0, 1.0)
}

/// One picture's random numbers.
struct Dice(ChaCha8Rng);

impl Dice {
    fn new(seed: u64, class: usize, index: u64) -> Dice {
        let mut key = [0; 32];
        for (part, word) in key.chunks_mut(8).zip([seed, class as u64, index, VERSION]) {
            part.copy_from_slice(&word.to_le_bytes());
        }
        Dice(ChaCha8Rng::from_seed(key))
    }

    fn bits(&mut self) -> u32 {
        self.0.next_u32()
    }

    fn below(&mut self, n: u32) -> usize {
        ((self.bits() as u64 * n as u64) >> 32) as usize
    }

    fn unit(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / 16_777_216.0
    }

    fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.unit()
    }

    /// A unit vector, each direction alike.
    fn direction(&mut self) -> V {
        loop {
            let v = [self.range(-1.0, 1.0), self.range(-1.0, 1.0)];
            let r = length(v);
            if r > 0.1 && r < 1.0 {
                return v.map(|c| c / r);
            }
        }
    }

    /// Any hue, at least so pale (0: pure, 1: grey), from dark to bright.
    fn colour(&mut self, palest: f32) -> C {
        let hue = 6.0 * self.unit();
        self.colour_of(hue, palest)
    }

    /// The same of this hue: 0 red, 2 green, 4 blue.
    fn colour_of(&mut self, hue: f32, palest: f32) -> C {
        let pale = self.range(palest, 0.9);
        let bright = self.range(0.25, 1.0);
        [0.0, 2.0, 4.0].map(|third| {
            let h = wave((hue + third) / 6.0) * 1.5 + 0.5; // red is full for a third of the circle
            bright * (pale + (1.0 - pale) * h.clamp(0.0, 1.0))
        })
    }
}

/// A JPEG of quality 90 with smooth shapes, edges and as much grain as makes it a photograph's size.
pub fn textured(seed: u64, width: usize, height: usize) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut real = || random.next_u32() as f32 / u32::MAX as f32;
    let waves: Vec<[f32; 4]> = (0..8).map(|_| [(); 4].map(|()| real())).collect();
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
            for channel in 0..3 {
                let wave = |[a, b, c, d]: &[f32; 4]| {
                    (20.0 * a * u + 20.0 * b * v + 6.0 * c + channel as f32 * d).sin()
                };
                let smooth: f32 = waves.iter().map(wave).sum();
                let edge = if (smooth * 2.0).floor() % 2.0 == 0.0 { 18.0 } else { 0.0 };
                pixels.push((120.0 + 14.0 * smooth + edge + 22.0 * (real() - 0.5)) as u8);
            }
        }
    }
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 90);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::R_4_2_0);
    encoder
        .encode(&pixels, width as u16, height as u16, jpeg_encoder::ColorType::Rgb)
        .expect("a small picture, into memory");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_picture_is_a_pure_function_the_same_on_every_machine() {
        let mut seen = HashSet::new();
        let mut sum = 0xcbf2_9ce4_8422_2325_u64; // FNV-1a
        for (seed, index, side) in [(0, 0, 64), (1, 0, 64), (0, 1, 64), (0, FIRST_VAL, 33)] {
            for class in 0..CLASSES.len() {
                let picture = draw(seed, class, index, side);
                assert_eq!(picture.len(), side * side * 3);
                assert_eq!(picture, draw(seed, class, index, side));
                sum =
                    picture.iter().fold(sum, |h, &b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
                assert!(seen.insert(picture));
            }
        }
        // If this fails on purpose, raise VERSION and put the new sum here.
        assert_eq!(sum, 0x344f_0efd_f8a8_d7fd, "the pictures have changed: {sum:#018x}");
        assert_eq!(draw(0, 0, 0, 1).len(), 3);
    }

    /// Points of the square -1.2 to 1.2.
    fn plane() -> impl Iterator<Item = V> {
        grid(240).map(|p| p.map(|v| 2.4 * v - 1.2))
    }

    #[test]
    fn each_shape_is_a_distance_near_its_outline_and_fills_the_unit_disc() {
        for (shape, name) in SHAPES.iter().zip(CLASSES) {
            let radius = plane().filter(|&p| shape(p) < 0.0).map(length).fold(0.0, f32::max);
            assert!((0.8..1.12).contains(&radius), "{name} has radius {radius}");
            let h = 1e-3;
            let (mut near, mut off) = (0, 0);
            for [x, y] in plane().filter(|&p| shape(p).abs() < 0.02) {
                let dx = (shape([x + h, y]) - shape([x - h, y])) / (2.0 * h);
                let dy = (shape([x, y + h]) - shape([x, y - h])) / (2.0 * h);
                near += 1;
                off += (length([dx, dy]) - 1.0).abs().gt(&0.02) as usize; // corners
            }
            assert!(near > 500 && off * 20 < near, "{name}: {off} of {near} slopes are not 1");
        }
    }

    #[test]
    fn no_two_classes_have_nearly_the_same_shape() {
        let inside = SHAPES.map(|shape| plane().map(|p| shape(p) < 0.0).collect::<Vec<_>>());
        for (i, a) in inside.iter().enumerate() {
            for b in &inside[..i] {
                let differ = a.iter().zip(b).filter(|(a, b)| a != b).count();
                assert!(differ * 20 > a.len(), "{}: {differ} of {}", CLASSES[i], a.len());
            }
        }
    }

    /// How often the nearest class mean is right, when `cue` more of brightness goes to each class
    /// than to the one before.
    fn nearest_mean(cue: f32) -> f32 {
        let side = 16;
        let picture = |class, index| {
            let bytes = draw(7, class, index, side).into_iter();
            bytes.map(|b| b as f32 + cue * class as f32).collect::<Vec<_>>()
        };
        let mean = |class| {
            let mut sum = vec![0.0; side * side * 3];
            for i in 0..300 {
                sum.iter_mut().zip(picture(class, i)).for_each(|(s, v)| *s += v / 300.0);
            }
            sum
        };
        let means: Vec<Vec<f32>> = (0..CLASSES.len()).into_par_iter().map(mean).collect();
        let right = |&(class, i): &(usize, u64)| {
            let (p, square) =
                (picture(class, FIRST_VAL + i), |(a, b): (&f32, &f32)| (a - b) * (a - b));
            let far = |c: usize| p.iter().zip(&means[c]).map(square).sum::<f32>();
            (0..CLASSES.len()).min_by(|&a, &b| far(a).total_cmp(&far(b))) == Some(class)
        };
        let all: Vec<_> = (0..CLASSES.len()).flat_map(|c| (0..100).map(move |i| (c, i))).collect();
        all.par_iter().filter(|&case| right(case)).count() as f32 / all.len() as f32
    }

    #[test]
    fn colour_and_place_tell_little_of_the_class() {
        // Chance is 0.1, with a standard deviation of 0.01; the hue of two figures in three shows, and a cue of
        // one part in 15 more would.
        let (without, with) = (nearest_mean(0.0), nearest_mean(16.0));
        assert!((0.12..0.3).contains(&without), "by the class means {without} are right");
        assert!(with > without + 0.05, "the test would not see a cue: {with}");
    }

    /// A folder of its own for each test, new and removed afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("zfnet-synthetic-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        /// Writes a tree of 8x8 pictures and counts those written.
        fn write(&self, seed: u64, train: usize, val: usize) -> io::Result<usize> {
            let most = AtomicUsize::new(0);
            let progress = |n| _ = most.fetch_max(n, Ordering::Relaxed);
            write_folder(&self.0, seed, 8, train, val, progress)?;
            Ok(most.into_inner())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_tree_holds_the_pictures_and_train_and_val_never_meet() {
        let root = Scratch::new("tree");
        assert_eq!(root.write(3, 2, 2).unwrap(), 40);
        let mut seen = HashSet::new();
        for (split, first) in [("train", 0), ("val", FIRST_VAL)] {
            for (class, name) in CLASSES.iter().enumerate() {
                let folder = root.0.join(split).join(name);
                assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
                for i in 0..2 {
                    let png = image::open(folder.join(format!("0000{i}.png"))).unwrap();
                    let pixels = png.into_rgb8().into_raw();
                    assert_eq!(pixels, draw(3, class, first + i, 8));
                    assert!(seen.insert(pixels));
                }
            }
        }
    }

    #[test]
    fn a_complete_tree_is_kept_and_another_one_made_anew() {
        let root = Scratch::new("again");
        let (first, last) =
            (root.0.join("train/disc/00000.png"), root.0.join("train/disc/00002.png"));
        assert_eq!(root.write(3, 3, 1).unwrap(), 40);
        assert_eq!(root.write(3, 3, 1).unwrap(), 0);

        let (before, theirs) = (fs::read(&first).unwrap(), root.0.join("train/disc/mine.png"));
        fs::write(&theirs, "a user's").unwrap();
        assert_eq!(root.write(4, 2, 1).unwrap(), 30);
        assert!(fs::read(&first).unwrap() != before && !last.exists() && theirs.exists());

        let marker = fs::read_to_string(root.0.join(MARKER)).unwrap();
        let interrupted = marker.replace("true", "false");
        fs::write(root.0.join(MARKER), interrupted).unwrap();
        assert_eq!(root.write(4, 2, 1).unwrap(), 30);
        assert_eq!(fs::read_to_string(root.0.join(MARKER)).unwrap(), marker);
    }

    #[test]
    fn a_folder_that_is_not_ours_is_refused_and_left_alone() {
        let root = Scratch::new("foreign");
        fs::create_dir_all(root.0.join("train/disc")).unwrap();
        fs::write(root.0.join("train/disc/00000.png"), "a user's").unwrap();
        for marker in [None, Some("{}"), Some("not json")] {
            if let Some(text) = marker {
                fs::write(root.0.join(MARKER), text).unwrap();
            }
            let error = root.write(3, 1, 1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
            assert!(error.to_string().contains("is not empty"));
        }
        assert_eq!(fs::read(root.0.join("train/disc/00000.png")).unwrap(), b"a user's");
        assert!(!root.0.join("val").exists());
    }

    #[test]
    fn the_example_is_like_photographs() {
        let bytes = textured(1, 500, 375).len();
        assert!((40_000..70_000).contains(&bytes), "{bytes} bytes");
    }
}
