//! Several GPUs, each in a thread, that exchange values by NCCL, or by what stands in for both
//! (`tests/standin/README.md`).

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use crate::common::{indices, tensor, values};
use zfnet::backend::cuda::{Communicator, CudaBackend, Options, UniqueId};
use zfnet::backend::{Backend, Precision, StepState};
use zfnet::shape::Shape;

/// Longer than any rank is late in a test that is to pass, even on a slow machine.
const PATIENT: Duration = Duration::from_secs(60);
/// Where others never come.
const IMPATIENT: Duration = Duration::from_secs(2);

fn gpu(device: usize) -> CudaBackend {
    let precision = Some(Precision::F32);
    CudaBackend::new(Options { device, precision, ..Options::default() }).expect("another GPU")
}

/// Runs `work` as every rank, each with its own GPU.
fn ranks<T: Send>(
    count: usize,
    patience: Duration,
    work: impl Fn(&CudaBackend, &Arc<Communicator>) -> T + Sync,
) -> Vec<T> {
    let id = UniqueId::new().expect("NCCL");
    let opened = Barrier::new(count);
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..count)
            .map(|rank| {
                let (work, opened) = (&work, &opened);
                scope.spawn(move || {
                    let backend = gpu(rank);
                    opened.wait();
                    let communicator =
                        Communicator::new(&backend, &id, rank, count, patience).unwrap();
                    work(&backend, &communicator)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Value `i` of what `rank` has for `other`.
fn value(rank: usize, other: usize, i: usize) -> f32 {
    (100 * rank + 10 * other + i + 1) as f32
}

/// Slices of what operations before have made, of another length for each rank and for one none, to operations behind.
#[test]
#[ignore = "needs eight NVIDIA GPUs and NCCL"]
fn slices_go_where_they_are_sent() {
    for count in [2, 4, 8] {
        ranks(count, PATIENT, |backend, communicator| {
            let (me, len) = (communicator.rank(), count * (count - 1) / 2);
            let first = |to: usize| (0..to).sum::<usize>();
            let slice = |to: usize| first(to)..first(to + 1); // as many as its number
            let outgoing = (0..count).flat_map(|to| (0..to).map(move |i| value(me, to, i)));
            let x = tensor(backend, Shape::vector(len), &outgoing.collect::<Vec<_>>());
            let mut made = backend.zeros(Shape::vector(len)).unwrap();
            let mut received = backend.zeros(Shape::vector(count * me.max(1))).unwrap();
            let mut used = backend.zeros(received.shape()).unwrap();
            backend.relu_forward(&mut made, &x).unwrap();
            communicator.after_operations().unwrap();
            let mut group = communicator.group();
            for other in communicator.others() {
                group.send(other, &made, slice(other));
                group.receive(other, &mut received, other * me..(other + 1) * me);
            }
            group.enqueue().unwrap();
            communicator.before_operations().unwrap();
            backend.relu_forward(&mut used, &received).unwrap();
            let found = values(backend, &used);
            for other in communicator.others() {
                let expected: Vec<f32> = (0..me).map(|i| value(other, me, i)).collect();
                assert_eq!(found[other * me..(other + 1) * me], expected, "from {other} to {me}");
            }
            communicator.finish().unwrap();
        });
    }
}

/// A rank whose loss is not finite halts the updates of all, before the host knows.
#[test]
#[ignore = "needs two NVIDIA GPUs and NCCL"]
fn one_rank_halts_all() {
    ranks(2, PATIENT, |backend, communicator| {
        let mut state = backend.state().unwrap();
        let step = StepState { seed: 1, step: 0, first_sample: 0, learning_rate: 0.5 };
        backend.set_state(&mut state, step).unwrap();
        let one = Shape::vector(1);
        let [gradient, mut losses, mut dlogits] =
            [1.0, 0.0, 0.0].map(|v| tensor(backend, one, &[v]));
        let [mut w, mut v] = [3.0, 0.0].map(|v| tensor(backend, one, &[v]));
        let constants = zfnet::backend::SgdConstants { momentum: 0.0, weight_decay: 0.0 };
        let mut update = |state: &_| {
            backend.sgd_step(&mut w, &mut v, &gradient, &constants, state).unwrap();
            values(backend, &w)[0]
        };
        let exchange = |state: &mut _| {
            communicator.after_operations().unwrap();
            let mut group = communicator.group();
            group.halt(state);
            group.enqueue().unwrap();
            communicator.before_operations().unwrap();
        };
        exchange(&mut state);
        assert_eq!(update(&state), 2.5, "no rank has halted");
        if communicator.rank() == 1 {
            let logits = tensor(backend, one, &[f32::NAN]);
            let labels = indices(backend, &[0]);
            let losses = (&mut losses, &mut dlogits);
            backend
                .softmax_cross_entropy(losses.0, losses.1, &logits, &labels, 1.0, &mut state)
                .unwrap();
        }
        exchange(&mut state);
        assert_eq!(update(&state), 2.5, "rank 1 has halted");
        communicator.finish().unwrap();
    });
}

/// Rank 1 ends without a word. The other one is told in the end, its GPU is not left hanging, and it can go on alone.
#[test]
#[ignore = "needs two NVIDIA GPUs and NCCL"]
fn a_rank_that_has_ended_is_not_waited_for_for_ever() {
    let both_are_there = Barrier::new(2);
    ranks(2, IMPATIENT, |backend, communicator| {
        both_are_there.wait();
        if communicator.rank() == 1 {
            return;
        }
        let shape = Shape::vector(5);
        let x = tensor(backend, shape, &[1.0, -2.0, 3.0, -4.0, 5.0]);
        let mut y = backend.zeros(shape).unwrap();
        let exchange = |into: &mut _| {
            communicator.after_operations()?;
            let mut group = communicator.group();
            group.send(1, &x, 0..5);
            group.receive(1, into, 0..5);
            group.enqueue()?;
            communicator.before_operations()
        };
        let message =
            exchange(&mut y).and_then(|()| backend.synchronize()).unwrap_err().to_string();
        assert!(message.contains("rank 0 of 2"), "{message}");
        assert!(message.contains("have not done their part for 2 seconds"), "{message}");
        let message = exchange(&mut y).unwrap_err().to_string();
        assert!(message.contains("the exchange has ended"), "{message}");
        backend.relu_forward(&mut y, &x).unwrap();
        assert_eq!(values(backend, &y), [1.0, 0.0, 3.0, 0.0, 5.0]);
    });
}

/// Whoever ends drops what it has sent, though nobody has received it.
#[test]
#[ignore = "needs two NVIDIA GPUs and NCCL"]
fn memory_can_be_dropped_though_nobody_receives_it() {
    let both_are_there = Barrier::new(2);
    ranks(2, IMPATIENT, |backend, communicator| {
        let send = || {
            let x = tensor(backend, Shape::vector(4), &[1.0; 4]);
            let mut group = communicator.group();
            group.send(1, &x, 0..4);
            group.enqueue()
        };
        if communicator.rank() == 0 {
            send().unwrap();
            let message = send().unwrap_err().to_string();
            assert!(message.contains("the exchange has ended"), "{message}");
        }
        both_are_there.wait();
    });
}

#[test]
#[ignore = "needs two NVIDIA GPUs and NCCL"]
fn ranks_that_do_not_come_are_missed() {
    let backend = gpu(0);
    let id = UniqueId::new().unwrap();
    let message = Communicator::new(&backend, &id, 0, 2, IMPATIENT).err().unwrap().to_string();
    assert!(message.contains("rank 0 of 2: the other ranks have not done"), "{message}");
}

/// What does not fit together is told at both ranks, naming each. (NCCL itself promises nothing then.)
#[test]
#[ignore = "needs the stand-in for NCCL"]
fn slices_of_another_length_are_errors() {
    let messages = ranks(2, PATIENT, |backend, communicator| {
        let mut x = backend.zeros(Shape::vector(4)).unwrap();
        let mut group = communicator.group();
        match communicator.rank() {
            0 => group.send(1, &x, 0..4),
            _ => group.receive(0, &mut x, 0..3),
        }
        let result = group.enqueue().and_then(|()| communicator.finish());
        result.unwrap_err().to_string()
    });
    for (rank, message) in messages.iter().enumerate() {
        assert!(message.contains(&format!("rank {rank} of 2: NCCL")), "{message}");
        assert!(message.contains("invalid usage"), "{message}");
    }
}

#[test]
#[ignore = "needs the stand-in for CUDA's driver"]
fn a_missing_library_is_named() {
    const CHILD: &str = "ZFNET_TEST_WITHOUT_NCCL";
    if std::env::var_os(CHILD).is_some() {
        println!("told: {}", UniqueId::new().expect_err("there is no NCCL"));
        return;
    }
    let path = std::env::var("LD_LIBRARY_PATH").unwrap();
    let without: Vec<&str> = path.split(':').filter(|folder| !folder.ends_with("nccl")).collect();
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["nccl::a_missing_library_is_named", "--exact", "--include-ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", without.join(":"))
        .env(CHILD, "1")
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success(), "{output}");
    for words in ["libnccl.so.2", "libnccl2", "nvidia-nccl-cu13", "a single GPU needs none"] {
        assert!(output.contains(words), "{output}");
    }
}
