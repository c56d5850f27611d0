//! Several GPUs, each in a thread, that exchange values by NCCL, or by what stands in for both
//! (`tests/standin/README.md`).

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use crate::common::{all_weights, bits, indices, random_params, tensor, values};
use crate::ranks::{BATCH, COUNTS, Left, PARTS, odd, train};
use zfnet::backend::cuda::{Communicator, CudaBackend, NcclExchange, Options, UniqueId};
use zfnet::backend::{Backend, Precision, StepState};
use zfnet::model::{Network, Params};
use zfnet::ranks::Ranks;
use zfnet::shape::Shape;
use zfnet::train::{Division, Exchange, Slices};

/// Longer than any rank is late in a test that is to pass, even on a slow machine.
const PATIENT: Duration = Duration::from_secs(20);
/// Where others never come.
const IMPATIENT: Duration = Duration::from_secs(2);

fn gpu(device: usize) -> CudaBackend {
    in_precision(device, Precision::F32)
}

fn in_precision(device: usize, precision: Precision) -> CudaBackend {
    let precision = Some(precision);
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
                        Communicator::new(&backend, &id, rank, count, patience, || Ok(())).unwrap();
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
            communicator.finish(PATIENT).unwrap();
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
        communicator.finish(PATIENT).unwrap();
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
    let message =
        Communicator::new(&backend, &id, 0, 2, IMPATIENT, || Ok(())).err().unwrap().to_string();
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
        let result = group.enqueue().and_then(|()| communicator.finish(PATIENT));
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

// ---- gradients and weights ----

/// Does something as every rank that is a thread, each with its own GPU.
fn with_gpus<T: Send>(
    count: usize,
    precision: Precision,
    work: impl Fn(&CudaBackend, Ranks) -> T + Sync,
) -> Vec<T> {
    thread::scope(|scope| {
        let run = |ranks: Ranks| {
            let work = &work;
            scope.spawn(move || work(&in_precision(ranks.rank(), precision), ranks))
        };
        let all: Vec<_> = Ranks::threads(count, PATIENT).into_iter().map(run).collect();
        all.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn train_by_gpus(
    count: usize,
    precision: Precision,
    counts: &[usize],
    poisoned: Option<usize>,
) -> Vec<Left> {
    let network = odd();
    with_gpus(count, precision, |backend, ranks| {
        let division = Division { parts: PARTS, tree: true, ranks: ranks.clone() };
        train(backend, &network, division, counts, poisoned, false, |trainer| {
            trainer.exchange_by(Box::new(
                NcclExchange::new(backend, &network, &ranks, PATIENT).unwrap(),
            ));
        })
    })
}

/// Steps of several GPUs leave the weights and losses of one GPU.
#[test]
#[ignore = "needs eight NVIDIA GPUs and NCCL"]
fn gpus_make_the_bits_of_one() {
    for precision in [Precision::F32, Precision::Bf16] {
        let backend = in_precision(0, precision);
        let alone = train(&backend, &odd(), Division::alone(PARTS), &COUNTS, None, false, |_| ());
        assert_eq!(alone.losses.len(), COUNTS.len());
        for count in [2, 4, 8] {
            for (rank, left) in train_by_gpus(count, precision, &COUNTS, None).iter().enumerate() {
                let error = &left.error;
                assert!(*left == alone, "{}, rank {rank} of {count}: {error:?}", precision.name());
            }
        }
    }
}

/// The loss of one GPU's part is not finite: no GPU moves its weights.
#[test]
#[ignore = "needs four NVIDIA GPUs and NCCL"]
fn a_bad_loss_of_one_gpu_stops_all() {
    let backend = gpu(0);
    let before = bits(&all_weights(&backend, &Params::init(&backend, &odd(), 1).unwrap()));
    for (count, poisoned) in [(2, 0), (2, 1), (4, 2)] {
        let all = train_by_gpus(count, Precision::F32, &[BATCH; 4], Some(poisoned));
        for (rank, left) in all.iter().enumerate() {
            let error = left.error.as_deref().unwrap_or_default();
            assert!(error.contains("the loss is NaN at step 1"), "rank {rank}: {error}");
            // What the poisoned one owns has gone to all.
            let moved = left.weights.iter().zip(&before).filter(|(after, before)| after != before);
            assert!(moved.count() <= odd().classes(), "rank {rank} of {count}");
        }
    }
}

/// The sum of values along a tree.
fn tree(mut values: Vec<f32>) -> f32 {
    while values.len() > 1 {
        values = values
            .chunks(2)
            .map(|pair| pair.iter().copied().reduce(|a, b| a + b).unwrap())
            .collect();
    }
    values[0]
}

/// Which rank owns each value of a network's weights, in the order of [`all_weights`].
fn owners(network: &Network, count: usize) -> Vec<usize> {
    let slices = Slices::new(network, 0, count);
    let mut owners = Vec::new();
    for layer in 0..network.layers.len() {
        for tensor in 0..2 {
            for rank in 0..count {
                owners.extend(slices.values(layer, rank)[tensor].clone().map(|_| rank));
            }
        }
    }
    owners
}

/// `to += from`, by operations that nobody waits for.
fn add(backend: &CudaBackend, to: &mut Params<CudaBackend>, from: &Params<CudaBackend>) {
    for (to, from) in to.layers.iter_mut().flatten().zip(from.layers.iter().flatten()) {
        backend.add(&mut to.weight, &from.weight).unwrap();
        backend.add(&mut to.bias, &from.bias).unwrap();
    }
}

/// Every part of the exchange by itself: of values that operations have just made, to others that use them at once; in two
/// rounds in the same memory, in the second of which some ranks have no gradient.
#[test]
#[ignore = "needs eight NVIDIA GPUs and NCCL"]
fn slices_are_summed_gathered_and_collected() {
    let network = odd();
    for count in [2, 4, 8] {
        let senders = [count, count / 2 + 1];
        // Of each rank: its own values, then sums, weights and momentum as they come to be.
        let all = with_gpus(count, Precision::F32, |backend, ranks| {
            let own = random_params(backend, &network, 10 + ranks.rank() as u64);
            let slices = Slices::new(&network, ranks.rank(), count);
            let mut exchange = NcclExchange::new(backend, &network, &ranks, PATIENT).unwrap();
            let [mut gradients, mut weights, mut momentum] =
                [(); 3].map(|()| Params::zeros(backend, &network).unwrap());
            let rounds = senders.map(|senders| {
                add(backend, &mut gradients, &own);
                for (layer, gradient) in gradients.layers.iter_mut().enumerate().rev() {
                    if gradient.is_some() {
                        exchange.begin(backend, layer, gradient, senders).unwrap();
                    }
                }
                let sums = exchange.sums(backend, &mut gradients).unwrap();
                let sums = all_weights(backend, sums);
                add(backend, &mut weights, &own);
                exchange.gather(backend, &mut weights).unwrap();
                [sums, all_weights(backend, &weights)]
            });
            let part = slices.of(backend, &own).unwrap();
            exchange.collect(backend, &part, &mut momentum, count - 1).unwrap();
            [all_weights(backend, &own), rounds.concat().concat(), all_weights(backend, &momentum)]
        });
        let owners = owners(&network, count);
        for (me, [_, found, collected]) in all.iter().enumerate() {
            let times = |rank: usize, i: usize, n: usize| n as f32 * all[rank][0][i]; // exact, of 1 and 2
            let mut expected = Vec::new();
            for (n, senders) in (1..).zip(senders) {
                let mine = (0..owners.len()).filter(|i| owners[*i] == me);
                expected.extend(
                    mine.map(|i| tree((0..senders).map(|rank| times(rank, i, n)).collect())),
                );
                expected.extend((0..owners.len()).map(|i| times(owners[i], i, n)));
            }
            assert!(bits(found) == bits(&expected), "rank {me} of {count}");
            let of_all = |i: usize| if me == count - 1 { all[owners[i]][0][i] } else { 0.0 };
            let expected: Vec<f32> = (0..owners.len()).map(of_all).collect();
            assert!(*collected == expected, "collected at {me} of {count}");
        }
    }
}
