//! `cargo bench`: the rows of `zfnet bench` for zfnet-mini, under criterion; with the feature `cuda`
//! also on a GPU, if there is one.

use std::time::Instant;

use criterion::Criterion;
use zfnet::backend::cpu::CpuBackend;
use zfnet::bench::{Benchmark, cases};
use zfnet::model::{Architecture, Network};

fn main() {
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    rows(&mut criterion, &CpuBackend::new(None).expect("threads"));
    #[cfg(feature = "cuda")]
    match zfnet::backend::cuda::CudaBackend::new(Default::default()) {
        Ok(backend) => rows(&mut criterion, &backend),
        Err(error) => eprintln!("no rows on a GPU: {error}"),
    }
    criterion.final_summary();
}

fn rows<B: Benchmark>(criterion: &mut Criterion, backend: &B) {
    let network = Architecture::find("zfnet-mini").and_then(Network::new).expect("built in");
    for case in cases(backend, &network, 32, &[], &[]).expect("layers") {
        let mut run = case.prepare(backend).expect("memory");
        criterion.bench_function(&case.id, |bencher| {
            bencher.iter_custom(|runs| {
                let start = Instant::now();
                (0..runs).for_each(|_| run().expect("planned sizes"));
                backend.synchronize().expect("a backend that ran");
                start.elapsed()
            });
        });
    }
}
