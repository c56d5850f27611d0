//! The search for the strongest activations, divided among ranks.
//!
//! Batches are those of one rank, whoever looks at them, and so are their bits; lists are brought together by one order.
//! So any number of ranks finds the same, and goes on with what any other has found in the images so far.

use std::sync::Arc;

use super::peaks::{Activation, BATCH, Chosen, Search, Searched, insert, search};
use crate::backend::{Backend, SeedUnit};
use crate::data::images::Images;
use crate::model::{Model, Projector};
use crate::ranks::Ranks;
use crate::{Error, Result};

/// Batches of each rank between two times that rank 0 takes in what all have found. For a GPU, which looks at thousands
/// of images a second, that is some 0.1 s: much beside a message of few peaks, since after the first ones few are
/// stronger than those before. For a CPU at 40 a second it is 6 s, which is little to be lost and done again.
const BATCHES: usize = 8;

/// What a rank has found in a part of the images: peaks, see [`rows`], and files that are no images, with the reason.
type Found = (Vec<[u32; 6]>, Vec<(usize, String)>);

/// A [`search`] to its end by all ranks, each of which is given the result; until then rank 0 alone has what was found.
/// `progress` is called when it has taken in what all have found. Bad images are counted at rank 0.
///
/// # Errors
/// As [`search`], if a rank is lost or has failed, or if a signal has asked any of them to stop: then rank 0 has what was
/// found so far.
pub(super) fn search_by_ranks<B: Backend>(
    projector: &mut Projector<'_, B>,
    model: &Model<B>,
    images: &Arc<Images>,
    chosen: &[Chosen],
    count: usize,
    workers: usize,
    ranks: &Ranks,
    searched: &mut Searched,
    mut progress: impl FnMut(&Searched) -> Result<()>,
) -> Result<()> {
    if ranks.count() == 1 {
        return search(projector, model, images, chosen, count, workers, searched, progress);
    }
    let first: usize = of_first(ranks, &searched.done)?;
    let order: Vec<u32> = (first as u32..images.len() as u32).collect();
    let own = order.chunks(BATCH).skip(ranks.rank()).step_by(ranks.count());
    let own = own.flatten().copied().collect();
    let mut search = Search::over(images, own, workers, BATCH);
    let mut found = Searched::nothing(chosen);
    let at_a_time = BATCHES * BATCH * ranks.count();
    for start in (first..images.len()).step_by(at_a_time) {
        for _ in 0..BATCHES {
            ranks.check()?;
            let stops = ranks.check_stop().is_err();
            if stops || !search.next(projector, model, chosen, count, &mut found)? {
                break;
            }
        }
        ranks.stop_together()?; // which leaves out a part that somebody has broken off
        // What lies before has been told.
        let mut bad = images.bad_indices();
        bad.retain(|(image, _)| *image >= start);
        let own: Found = (rows(&found.best, start), bad);
        ranks.gather(serde_json::to_vec(&own).expect("plain data"), |rank, bytes| {
            let (peaks, bad): Found = read(rank, &bytes)?;
            insert_rows(&mut searched.best, &peaks, count);
            images.note_bad(bad)
        })?;
        searched.done = images.len().min(start + at_a_time);
        progress(searched)?;
    }
    let all: Vec<[u32; 6]> = of_first(ranks, &rows(&searched.best, 0))?;
    if !ranks.is_first() {
        insert_rows(&mut searched.best, &all, count);
    }
    Ok(())
}

/// What rank 0 has.
fn of_first<T: serde::Serialize + serde::de::DeserializeOwned>(
    ranks: &Ranks,
    own: &T,
) -> Result<T> {
    let own = ranks.is_first().then(|| serde_json::to_vec(own).expect("plain data"));
    read(0, &ranks.broadcast(own)?)
}

fn read<T: serde::de::DeserializeOwned>(rank: usize, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Ranks(format!("what rank {rank} has found: {error}")))
}

/// The peaks in images from the one numbered `first` on: which map of the chosen ones, image, map, row, column, and the
/// bits of the activation, which may be what JSON has no number for.
fn rows(best: &[Vec<Vec<Activation>>], first: usize) -> Vec<[u32; 6]> {
    let lists = (0..).zip(best.iter().flatten());
    let rows = lists.flat_map(|(list, peaks)| {
        let late = peaks.iter().filter(move |peak| peak.image as usize >= first);
        late.map(move |Activation { image, unit: SeedUnit { map, y, x, value } }| {
            [list, *image, *map, *y, *x, value.to_bits()]
        })
    });
    rows.collect()
}

fn insert_rows(best: &mut [Vec<Vec<Activation>>], rows: &[[u32; 6]], count: usize) {
    let mut lists: Vec<&mut Vec<Activation>> = best.iter_mut().flatten().collect();
    for &[list, image, map, y, x, value] in rows {
        let unit = SeedUnit { map, y, x, value: f32::from_bits(value) };
        insert(lists[list as usize], Activation { image, unit }, count);
    }
}
