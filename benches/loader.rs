//! `cargo bench --bench loader`: what a loader's thread does for one image, and what a run of ImageNet's
//! size does once: open its index, shuffle.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput};
use xxhash_rust::xxh3::xxh3_64;
use zfnet::bench::loader::example;
use zfnet::data::Split;
use zfnet::data::images::{Images, ReadOptions, Scratch};
use zfnet::data::order::permutation;
use zfnet::data::set::DataSet;
use zfnet::data::shard::index::{Entry, Index};
use zfnet::data::shard::manifest::{Class, Form, MANIFEST, Manifest, ShardMark};
use zfnet::data::shard::{Io, ShardSet};
use zfnet::model::Canvas;

/// Images of ImageNet's training set, and of a shard of them.
const IMAGENET: u32 = 1_281_167;
const IN_SHARD: u32 = 10_000;

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    let folder = tempfile::tempdir().expect("a folder");
    for (name, path) in example(folder.path(), 66).expect("pictures") {
        for io in [Io::Mmap, Io::Pread] {
            let options = ReadOptions {
                canvas: Canvas::square(256),
                max_bad: 0.0,
                cache_bytes: 0,
                io: Some(io),
            };
            let images = DataSet::open(&path).and_then(|set| set.images(Split::Train, options));
            read_rows(&mut criterion, &format!("{name}/{io:?}"), &Arc::new(images.expect("a set")));
        }
    }
    let set = folder.path().join("imagenet");
    write_indices(&set);
    let set = ShardSet::open(&set).expect("a manifest");
    criterion.bench_function("loader/open-1.28M", |bencher| {
        bencher.iter(|| set.split(Split::Train, None).expect("its indices").len());
    });
    criterion.bench_function("loader/shuffle-1.28M", |bencher| {
        bencher.iter(|| permutation(1, black_box(7), IMAGENET as usize));
    });
    criterion.final_summary();
}

/// One image after the other, in a shuffled order, by one thread.
fn read_rows(criterion: &mut Criterion, name: &str, images: &Images) {
    let (mut scratch, mut square) = (Scratch::default(), vec![0; images.bytes_per_image()]);
    let order = permutation(1, 0, images.len());
    let mut order = order.iter().cycle();
    let mut group = criterion.benchmark_group("loader");
    group.throughput(Throughput::Elements(1));
    group.bench_function(format!("{name}/square"), |bencher| {
        bencher.iter(|| {
            let index = *order.next().expect("a circle") as usize;
            images.read_good(index, &mut scratch, &mut square).expect("a good image")
        });
    });
}

/// A set of ImageNet's size whose shards hold nothing: files with holes, and true indices.
fn write_indices(root: &Path) {
    fs::create_dir(root).expect("a folder");
    let mut manifest = Manifest::new(Form::Kept);
    let class = |c: u32| Class {
        folder: format!("n{c:08}"),
        name: format!("class {c}"),
        train: (IMAGENET - 1 - c) / 1000 + 1,
        val: 0,
    };
    manifest.classes = (0..1000).map(class).collect();
    for (shard, first) in (0..IMAGENET).step_by(IN_SHARD as usize).enumerate() {
        let mut index = Index::default();
        index.shard_bytes = 1 << 30;
        for number in first..IMAGENET.min(first + IN_SHARD) {
            let offset = u64::from(number - first) * 100_000;
            let entry = Entry { offset, bytes: 99_000, crc32c: 0, class: number % 1000, number };
            index
                .push(entry, &format!("n{:08}/n{:08}_{number}.JPEG", number % 1000, number % 1000));
        }
        let file = format!("train-{shard:06}.tar");
        let shard_file = File::create(root.join(&file)).expect("a file");
        shard_file.set_len(index.shard_bytes).expect("a file with a hole");
        let bytes = index.to_bytes();
        let mark = ShardMark {
            file,
            images: index.len() as u32,
            bytes: index.shard_bytes,
            xxh3: format!("{:016x}", index.shard_xxh3),
            index_xxh3: format!("{:016x}", xxh3_64(&bytes)),
        };
        fs::write(root.join(mark.index_file()), bytes).expect("an index");
        manifest.train.push(mark);
    }
    fs::write(root.join(MANIFEST), manifest.to_json()).expect("a manifest");
}
