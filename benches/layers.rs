//! `cargo bench`: the rows of `zfnet bench` for zfnet-mini, under criterion.

use criterion::Criterion;
use zfnet::backend::cpu::CpuBackend;
use zfnet::bench::cases;
use zfnet::model::{Architecture, Network};

fn main() {
    let backend = CpuBackend::new(None).expect("threads");
    let network = Architecture::find("zfnet-mini").and_then(Network::new).expect("built in");
    let mut criterion = Criterion::default().sample_size(10).configure_from_args();
    for case in cases(&network, 32, None, None).expect("layers") {
        let mut run = case.prepare(&backend).expect("room");
        criterion.bench_function(&case.id, |bencher| bencher.iter(&mut run));
    }
    criterion.final_summary();
}
