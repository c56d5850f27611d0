//! `zfnet study transfer`: the paper's Tables 4 and 5.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use zfnet::bench::Measured;
use zfnet::data::Split;
use zfnet::data::set::DataSet;
use zfnet::disk::write_whole;
use zfnet::report::csv;
use zfnet::study::activations::rows;
use zfnet::study::duplicates::{pairs, thumbnails};
use zfnet::study::few::{Squares, Start};
use zfnet::study::fingerprint;
use zfnet::study::folds::{Fold, by_class, folds, shared};
use zfnet::study::parts::Parts;
use zfnet::study::probe::paper_layers;
use zfnet::study::transfer::{frozen, whole, write};

use super::StudyArgs;
use crate::cli::progress::Progress;
use crate::cli::{OnDevice, ReadArgs};

#[derive(Args)]
pub struct Transfer {
    #[command(flatten)]
    pub study: StudyArgs,
    /// Folder with train/CLASS/* and val/CLASS/*, or shards made by `zfnet pack`, of classes that the
    /// checkpoint was not trained on
    #[arg(long)]
    data: PathBuf,
    /// Layer whose outputs are used [default: the last before the classifier]
    #[arg(long)]
    layer: Option<String>,
    /// Training images of each class, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "5,15,30,60")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    per_class: Vec<u32>,
    /// How often images are drawn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    folds: u32,
    /// Test images of each class, at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    test_per_class: u32,
    /// Seed of the folds
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Do not train the same network from scratch beside it
    #[arg(long)]
    no_scratch: bool,
    /// Train the whole network from the checkpoint's weights, too
    #[arg(long)]
    fine_tune: bool,
    /// Updates of the weights of each network that is trained whole
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    updates: u32,
    /// What the checkpoint was trained on, to be searched for near-duplicates of the images used
    #[arg(long)]
    pretrained_on: Option<PathBuf>,
    /// Correlation of thumbnails from which on two images are near-duplicates
    #[arg(long, default_value_t = 0.95)]
    duplicate_threshold: f32,
    #[command(flatten)]
    read: ReadArgs,
}

impl OnDevice for Transfer {
    fn run<B: Measured>(mut self, backend: &B) -> Result<ExitCode> {
        if !(-1.0..=1.0).contains(&self.duplicate_threshold) {
            let found = self.duplicate_threshold;
            bail!("--duplicate-threshold: expected a correlation from -1 to 1, found {found}");
        }
        let model = self.study.load(backend)?;
        let layer = match &self.layer {
            Some(name) => model.network.layer(name)?,
            None => match paper_layers(&model.network).last() {
                Some(&layer) => layer,
                None => {
                    bail!("the network has no layer before its classifier: name one with --layer")
                }
            },
        };
        self.per_class.sort_unstable();
        self.per_class.dedup();
        let per_class: Vec<usize> = self.per_class.iter().map(|&k| k as usize).collect();
        let largest = per_class.last().copied().unwrap_or(0);
        let data = DataSet::open(&self.data)?;
        let options = self.read.options(model.preprocess.resize)?;
        let train = Arc::new(data.images(Split::Train, options)?);
        let val = Arc::new(data.images(Split::Val, options)?);
        let classes = data.names();
        let of_train = by_class(&train, classes.len());
        let of_val = by_class(&val, classes.len());
        let (tests, count) = (self.test_per_class as usize, self.folds as usize);
        let drawn = folds(&of_train, &of_val, &classes, largest, tests, count, self.seed)
            .with_context(|| self.data.display().to_string())?;
        let union = |of: &dyn Fn(&Fold) -> Vec<u32>| {
            let mut all: Vec<u32> = drawn.iter().flat_map(of).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let (trained, tested) = (union(&|fold| fold.train(largest)), union(&Fold::test));

        let out = self.study.out(&zfnet::study::transfer::STUDY)?;
        let mut notes = Vec::new();
        let (mut excluded, mut found) = (Vec::new(), Vec::new());
        match &self.pretrained_on {
            None => notes
                .push("No near-duplicates were searched: --pretrained-on was not given.".into()),
            Some(root) => {
                let seen = DataSet::open(root)?.images(Split::Train, options)?;
                let all: Vec<u32> = (0..seen.len() as u32).collect();
                let second = thumbnails(&seen, &all)?;
                for (images, wanted, is_test) in [(&train, &trained, false), (&val, &tested, true)]
                {
                    let first = thumbnails(images, wanted)?;
                    for pair in pairs(&first, &second, self.duplicate_threshold) {
                        let image = wanted[pair.first];
                        if is_test {
                            excluded.push(image);
                        }
                        found.push(vec![
                            images.path(image as usize).display().to_string(),
                            seen.path(pair.second).display().to_string(),
                            format!("{:.4}", pair.correlation),
                            pair.mirrored.to_string(),
                        ]);
                    }
                }
                notes.push(format!(
                    "Images with a near-duplicate among those the network was trained on \
                     (duplicates.csv): {}. Of these {} are test images, which are left out; training \
                     images are not.",
                    found.len(),
                    excluded.len()
                ));
            }
        }
        let print = fingerprint(backend, &model)?;
        let images = [&train, &val].map(|images| images.fingerprint());
        let indices = (&trained, &tested, &excluded, self.seed, count, tests, largest);
        let precision = format!("{:?}", backend.precision());
        let parts = Parts::open(&out, &(&print, images, layer, indices, precision))?;
        let mut progress = Progress::new();
        let kept = out.join(".features");
        let mut features = |name: &str, images, wanted: &[u32]| {
            let workers = usize::from(self.read.workers);
            let keep = Some(kept.as_path());
            rows(backend, &model, images, wanted, &[layer], keep, workers, |done, of| {
                progress.show(name, done, of, "");
            })
            .map(|mut rows| rows.remove(0))
        };
        let training = features("training features", &train, &trained)?;
        let test = features("test features", &val, &tested)?;
        let mut scored = frozen(
            &training,
            &test,
            &drawn,
            &per_class,
            classes.len(),
            &excluded,
            &parts,
            |done, of| {
                progress.show("softmax", done, of, "");
            },
        )?;
        let starts = [(Start::Scratch, !self.no_scratch), (Start::FineTune, self.fine_tune)];
        for (start, _) in starts.into_iter().filter(|(_, wanted)| *wanted) {
            let squares = [(&train, &trained), (&val, &tested)];
            let [train, test] = squares.map(|(images, wanted)| Squares::read(images, wanted));
            let (train, test) = (train?, test?);
            scored.extend(whole(
                backend,
                &model,
                &classes,
                [&train, &test],
                &drawn,
                &per_class,
                &excluded,
                start,
                self.updates,
                &parts,
                |done, of| progress.show(&format!("networks {}", start.name()), done, of, ""),
            )?);
            notes.push(format!(
                "Networks {}: {} updates of at most {} images, whatever the number of images.",
                start.name(),
                self.updates,
                model.network.architecture.recipe.batch_size
            ));
        }
        progress.end();

        let few = [("training", &of_train, largest), ("test", &of_val, tests)];
        for (name, of_class, each) in few {
            let shared = shared(of_class, each, count).len();
            if shared > 0 {
                notes.push(format!(
                    "Classes with too few {name} images, which folds share: {shared}."
                ));
            }
        }
        notes.push(
            "The paper’s network was trained on ImageNet and its features were tested on 101 and 256 \
             classes of Caltech’s; with fewer classes chance is higher."
                .into(),
        );
        let mut facts = self.study.facts(&model);
        let more = [
            ("Data", self.data.display().to_string()),
            ("Classes", classes.len().to_string()),
            ("Layer", model.network.layers[layer].name.clone()),
            ("Folds", count.to_string()),
            ("Test images of each class, at most", tests.to_string()),
            ("Seed", self.seed.to_string()),
        ];
        facts.extend(more.map(|(name, value)| (name.to_owned(), value)));
        let cannot = || format!("cannot write into {}", out.display());
        if self.pretrained_on.is_some() {
            let head = ["image", "trained_on", "correlation", "mirrored"];
            let table = csv(&head, found);
            write_whole(&out.join("duplicates.csv"), table.as_bytes()).with_context(cannot)?;
        }
        let page = write(&out, facts, &per_class, &scored, notes).with_context(cannot)?;
        Parts::remove(&out)?;
        println!("{}", page.display());
        Ok(ExitCode::SUCCESS)
    }
}
