//! Training from shards: the same run as from the folder they were made of, whatever reads them; and
//! what happens when a shard is damaged, cut short or gone.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::program::{Place, Ran};
use zfnet::data::Split;
use zfnet::data::images::{Images, ReadOptions};
use zfnet::data::loader::{Bad, BatchPlan, Loader};
use zfnet::data::order::{Rank, epoch_order};
use zfnet::data::set::DataSet;
use zfnet::data::shard::Io;
use zfnet::data::shard::index::{Entry, Index};
use zfnet::model::Canvas;

const OPTIONS: ReadOptions =
    ReadOptions { canvas: Canvas::square(20), max_bad: 0.0, cache_bytes: 0, io: Some(Io::Mmap) };

/// A place whose data are also packed, as they are, into several shards.
fn packed(flags: &str) -> Place {
    let place = Place::new();
    place.run(&format!("pack data set {flags} --shard-size 20kB")).ok();
    assert!(place.path("set/train-000002.tar").exists() || flags.contains("raw"), "several shards");
    place
}

fn train(place: &Place, data: &str, out: &str, flags: &str) -> Ran {
    place.run(&format!("train --data {data} --arch tiny.toml --epochs 1 --out {out} {flags}"))
}

fn images(place: &Place, data: &str, options: ReadOptions) -> Arc<Images> {
    let set = DataSet::open(&place.path(data)).unwrap();
    Arc::new(set.images(Split::Train, options).unwrap())
}

/// The entry of an image in its shard's index: file of the shard, offset, name.
fn find(place: &Place, number: u32) -> (PathBuf, u64, String) {
    for shard in 0.. {
        let path = place.path(&format!("set/train-{shard:06}.tar"));
        let index = Index::parse(&fs::read(path.with_extension("idx")).unwrap()).unwrap();
        if let Some(at) = index.entries().iter().position(|entry| entry.number == number) {
            return (path, index.entries()[at].offset, index.name(at).to_owned());
        }
    }
    unreachable!()
}

#[test]
fn weights_do_not_depend_on_where_images_are_nor_on_who_reads_them() {
    let place = packed("");
    train(&place, "data", "folder", "").ok();
    for (i, reading) in ["mmap", "pread"].into_iter().enumerate() {
        for workers in [1, 4] {
            let out = format!("run-{i}-{workers}");
            let flags = format!("--io {reading} --workers {workers} --cache-mb 0");
            train(&place, "set", &out, &flags).ok();
            assert_eq!(place.results("folder"), place.results(&out), "{flags}");
        }
    }
    // Where a run reads its images from may even change on the way.
    let half = "--max-steps 2 --workers 1";
    train(&place, "data", "half", half).ok();
    train(&place, "set", "half", "--resume").ok();
    assert_eq!(place.results("folder"), place.results("half"));
    // Other commands take a set too.
    let of =
        |data: &str| place.run(&format!("eval --checkpoint folder --data {data} --json")).json();
    assert_eq!(of("data"), of("set"));
    let page = |data: &str| {
        let out = format!("page-{data}");
        place.run(&format!("top9 --checkpoint folder --data {data} --out {out}")).ok();
        let text = fs::read_to_string(place.path(&out).join("top9.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["layers"].clone()
    };
    assert_eq!(page("data"), page("set"));
}

/// Raw squares of the right size are what training would have cut out.
#[test]
fn raw_squares_train_the_same_weights() {
    let place = packed("--raw --resize 20");
    train(&place, "data", "folder", "").ok();
    for reading in ["mmap", "pread"] {
        train(&place, "set", reading, &format!("--io {reading}")).ok();
        let [weights, momentum, ..] = place.results("folder");
        let [raw_weights, raw_momentum, ..] = place.results(reading);
        assert!(weights == raw_weights && momentum == raw_momentum, "{reading}");
    }
    // They are other data to a run that is continued, though.
    train(&place, "set", "folder", "--resume").refused(&["training images", "raw 20x20"]);
}

#[test]
fn a_window_reads_shards_in_turn_and_loses_nothing() {
    let place = packed("");
    let images = images(&place, "set", OPTIONS);
    let shards: Vec<Vec<u32>> = images.shards().unwrap().on_disk().map(Iterator::collect).collect();
    let order = epoch_order(&images, Some(4), 1, 0).unwrap();
    let mut all = order.clone();
    all.sort_unstable();
    assert!(all.into_iter().eq(0..images.len() as u32));
    let shard_of = |i: &u32| shards.iter().position(|shard| shard.contains(i)).unwrap();
    let mut visits: Vec<usize> = order.iter().map(shard_of).collect();
    visits.dedup();
    // Only a stretch of 4 that two shards share goes back and forth.
    assert!(visits.len() <= shards.len() + 3 * (shards.len() - 1), "{visits:?}");
    let far = order.windows(2).filter(|pair| shard_of(&pair[0]) != shard_of(&pair[1])).count();
    assert!(far < order.len() / 2, "neighbours are of one shard");

    train(&place, "set", "windowed", "--shuffle-window 8 --workers 4").ok();
    train(&place, "set", "again", "--shuffle-window 8 --workers 1 --max-steps 2").ok();
    train(&place, "set", "again", "--resume").refused(&["--shuffle-window"]);
    train(&place, "set", "again", "--shuffle-window 8 --resume").ok();
    assert_eq!(place.results("windowed"), place.results("again"));
    // The same images, lying otherwise, would come in another order.
    place.run("pack data other --shard-size 40kB").ok();
    train(&place, "set", "moved", "--shuffle-window 8 --max-steps 2").ok();
    train(&place, "other", "moved", "--shuffle-window 8 --resume").refused(&["training images"]);
    train(&place, "data", "folder", "--shuffle-window 8").refused(&["--shuffle-window", "pack"]);
    assert!(!place.path("folder").exists());
}

/// Ranks read the batch among them, sample by sample the same as one alone.
#[test]
fn ranks_share_what_one_would_read() {
    let place = packed("");
    let images = images(&place, "set", OPTIONS);
    // The last batch has 3 images, in which two of four ranks have no share.
    let order = epoch_order(&images, None, 3, 5).unwrap()[..43].to_vec();
    let read = |rank: Rank, first_batch, workers| {
        let plan = BatchPlan::new(order.clone(), 8, Bad::Replace);
        let mut loader =
            Loader::new(images.clone(), BatchPlan { rank, first_batch, ..plan }, workers);
        let mut batches = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            let samples =
                batch.pixels().chunks(20 * 20 * 3).map(<[u8]>::to_vec).zip(batch.labels.clone());
            batches.push((batch.first, samples.collect::<Vec<_>>()));
            loader.recycle(batch);
        }
        batches
    };
    let alone = read(Rank::ALONE, 0, 1);
    assert_eq!(alone.len(), 6);
    assert_eq!(alone[2..], read(Rank::ALONE, 2, 3)[..], "from the middle on");
    let four: Vec<_> = (0..4).map(|rank| read(Rank::of_parts(rank, 4, 4, 8), 0, 2)).collect();
    for (number, (first, samples)) in alone.iter().enumerate() {
        let shares: Vec<_> = four.iter().map(|batches| &batches[number]).collect();
        let mut next = *first;
        for (first, share) in &shares {
            assert_eq!(*first, next);
            next += share.len();
        }
        let together: Vec<_> = shares.iter().flat_map(|(_, share)| share.clone()).collect();
        assert_eq!(together, *samples);
    }
}

/// Damage after packing: replaced in a way that depends on nothing else, listed, and counted.
#[test]
fn a_damaged_sample_is_replaced_and_listed() {
    let place = packed("");
    let (shard, offset, name) = find(&place, 7);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[offset as usize + 100] ^= 1;
    fs::write(&shard, bytes).unwrap();
    train(&place, "set", "strict", "--max-bad 0").refused(&[
        "train-",
        &name,
        "CRC-32C",
        "--max-bad",
    ]);
    let ran = train(&place, "set", "run", "--max-bad 0.02 --workers 1 --io pread").ok();
    assert!(ran.stderr.contains("1 training file(s)"), "{}", ran.stderr);
    train(&place, "set", "again", "--max-bad 0.02 --workers 4").ok();
    assert_eq!(place.results("run"), place.results("again"));
    for out in ["strict", "run", "again"] {
        let listed = fs::read_to_string(place.path(out).join("quarantine.tsv")).unwrap();
        let columns: Vec<&str> = listed.trim_end().split('\t').collect();
        let [file, key, reason] = columns[..] else { panic!("{listed}") };
        assert!(file.ends_with(shard.file_name().unwrap().to_str().unwrap()), "{listed}");
        assert!(key == name && reason.contains("CRC-32C"), "{listed}");
    }
    // As from a folder whose file is bad: the next one of the list stands in for it.
    let file = place.path("data/train").join(&name);
    fs::write(&file, "").unwrap();
    train(&place, "data", "folder", "--max-bad 0.02").ok();
    let [weights, ..] = place.results("folder");
    assert_eq!(weights, place.results("run")[0]);
}

/// Packing again into a set that has lost something puts back what was there.
#[test]
fn what_is_missing_is_made_anew() {
    let place = packed("");
    // One that was left out, so that numbers have a gap to mind.
    fs::write(place.path("data/train/disc/00001.png"), "").unwrap();
    fs::remove_dir_all(place.path("set")).unwrap();
    let pack = "pack data set --shard-size 20kB --max-bad 0.02";
    place.run(pack).ok();
    let set = || -> Vec<_> {
        let files = place.images("set");
        files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    };
    let whole = set();
    fs::remove_file(place.path("set/train-000001.tar")).unwrap();
    fs::write(place.path("set/train-000002.tar"), "short").unwrap();
    fs::write(place.path("set/train-000002.tar.tmp"), "left by a packer that was killed").unwrap();
    fs::remove_file(place.path("set/val-000000.idx")).unwrap();
    train(&place, "set", "run", "").refused(&["zfnet pack"]);
    let ran = place.run(pack).ok();
    assert!(ran.stderr.contains("made 3 missing or cut"), "{}", ran.stderr);
    assert!(set() == whole);
    let ran = place.run(pack).ok();
    assert!(ran.stderr.contains("there already"), "{}", ran.stderr);
    assert!(set() == whole);
    // Nor does it mix the images of two sources.
    for file in place.images("set").iter().filter(|file| file.extension().unwrap() == "tar") {
        fs::remove_file(file).unwrap();
    }
    let image = place.path("data/train/disc/00002.png");
    let mut bytes = fs::read(&image).unwrap();
    let at = bytes.len() - 30;
    bytes[at] ^= 1; // as long as it was, and no longer an image
    fs::write(&image, bytes).unwrap();
    place.run(pack).refused(&["train-00000", "as it was", "source has changed"]);
}

/// A set that does not fit together is refused before anything is made, with what to do about it.
#[test]
fn sets_that_do_not_fit_together() {
    let refused = |damage: &dyn Fn(&Place), words: &[&str]| {
        let place = packed("");
        damage(&place);
        train(&place, "set", "run", "").refused(&[words, &["zfnet pack"]].concat());
        assert!(!place.path("run").exists());
    };
    let shard = "set/train-000001.tar";
    let index = "set/train-000001.idx";
    refused(&|place| fs::remove_file(place.path(index)).unwrap(), &["train-000001.idx"]);
    refused(&|place| fs::remove_file(place.path(shard)).unwrap(), &["train-000001.tar"]);
    let cut = |place: &Place| {
        let file = fs::File::options().write(true).open(place.path(shard)).unwrap();
        file.set_len(700).unwrap();
    };
    refused(&cut, &["train-000001.tar", "expected", "found 700"]);
    let other = |place: &Place| {
        fs::copy(place.path("set/train-000000.idx"), place.path(index)).unwrap();
    };
    refused(&other, &["train-000001.idx", "expected xxh3"]);
    let flip = |place: &Place| {
        let mut bytes = fs::read(place.path(index)).unwrap();
        bytes[50] ^= 4;
        fs::write(place.path(index), bytes).unwrap();
    };
    refused(&flip, &["train-000001.idx", "expected xxh3"]);
    let manifest = |from: &'static str, to: &'static str| {
        move |place: &Place| {
            let path = place.path("set/manifest.json");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
        }
    };
    refused(
        &manifest("\"train-000001.tar\"", "\"../data.tar\""),
        &["manifest.json", "../data.tar"],
    );
    refused(&manifest("\"version\": 1", "\"version\": 9"), &["manifest.json", "version 9"]);
    refused(&manifest("\"train\": 6", "\"train\": 7"), &["manifest.json", "60", "61"]);
    refused(&manifest("{", "["), &["manifest.json", "expected"]);
}

/// Lengths that no packer writes, with all checksums right.
#[test]
fn raw_images_of_other_lengths_are_refused() {
    let place = packed("--raw --resize 24");
    let manifest = place.path("set/manifest.json");
    let path = place.path("set/train-000000.idx");
    let bytes = fs::read(&path).unwrap();
    let index = Index::parse(&bytes).unwrap();
    let mut forged = Index::default();
    (forged.shard_bytes, forged.shard_xxh3) = (index.shard_bytes, index.shard_xxh3);
    for (place, entry) in index.entries().iter().enumerate() {
        forged.push(Entry { bytes: entry.bytes - 3, ..*entry }, index.name(place));
    }
    let hash = |bytes: &[u8]| format!("{:016x}", xxhash_rust::xxh3::xxh3_64(bytes));
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(&hash(&bytes), &hash(&forged.to_bytes()))).unwrap();
    fs::write(&path, forged.to_bytes()).unwrap();
    train(&place, "set", "run", "").refused(&["train-000000.raw", "cannot have 1725 bytes"]);
}

/// The mean image of a set is used where its size fits, so it must be what it was.
#[test]
fn a_damaged_mean_is_refused_and_made_anew() {
    let place = packed("--raw --resize 20");
    let mean = place.path("set/mean.safetensors");
    let whole = fs::read(&mean).unwrap();
    let mut bytes = whole.clone();
    let at = bytes.len() - 3;
    bytes[at] ^= 1;
    fs::write(&mean, bytes).unwrap();
    train(&place, "set", "run", "").refused(&["mean.safetensors", "expected xxh3", "zfnet pack"]);
    place.run("pack data set --raw --resize 20 --shard-size 20kB").ok();
    assert!(fs::read(&mean).unwrap() == whole);
    place.run("verify set").ok();
    fs::remove_file(place.path("set/manifest.json")).unwrap();
    fs::remove_file(&mean).unwrap();
    fs::write(place.path("set/plan.json"), "{}").unwrap();
    train(&place, "set", "run", "").refused(&["set", "was not ended", "zfnet pack"]);
}

/// Cut short while a training reads it: an error that names the shard, not a crash and not zeros.
#[cfg(unix)]
#[test]
fn a_shard_cut_short_while_it_is_read() {
    for reading in ["mmap", "pread"] {
        let place = packed("");
        let flags = format!("--epochs 100000 --io {reading} --cache-mb 0");
        let child = place
            .command(&format!("train --data set --arch tiny.toml --out run {flags}"))
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let patience = Instant::now();
        let metrics = place.path("run/metrics.jsonl");
        while fs::metadata(&metrics).map_or(0, |file| file.len()) < 1000 {
            assert!(patience.elapsed() < Duration::from_secs(60), "no step in a minute");
            thread::sleep(Duration::from_millis(20));
        }
        let shard =
            fs::File::options().write(true).open(place.path("set/train-000001.tar")).unwrap();
        shard.set_len(600).unwrap();
        let ran = Ran::new(&flags, child.wait_with_output().unwrap());
        ran.refused(&["train-000001.tar", "cut short", "--resume"]);
    }
}
