//! Copies to and from a GPU that nobody waits for: they keep their order, however many are on their way.

use ocelli::backend::cuda::Cuda;
use ocelli::mem::{Buf, DType, Layout, Region};
use ocelli::plan::Backend;

use crate::gpu;

fn open(bytes: usize) -> Option<(Cuda, Buf<u8>)> {
    gpu::device()?;
    let mut io = Layout::new(Region::Io, DType::F16);
    let buffer = io.take(bytes);
    Some((Cuda::new(0, [0, 0, 0, io.bytes()], 0xff).unwrap(), buffer))
}

/// Bytes that tell their place and `round`.
fn bytes(len: usize, round: usize) -> Vec<u8> {
    (0..len).map(|i| ((i + 1) * (2 * round + 3) / 7) as u8).collect()
}

/// Of every size around that of a slot of pinned memory and of all slots together, one behind the other.
#[test]
fn what_is_written_is_read_whatever_its_size() {
    const MIB: usize = 1 << 20;
    let Some((cuda, buffer)) = open(50 * MIB) else { return };
    for (round, len) in
        [1, 63, 4096, 64 << 10, MIB, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 16 * MIB, 50 * MIB - 3].into_iter().enumerate()
    {
        let written = bytes(len, round);
        let mut source = written.clone();
        cuda.write(buffer, &source).unwrap();
        // It may be reused at once.
        source.fill(0);
        cuda.write(buffer, &source[..0]).unwrap();
        let mut read = vec![0; len];
        cuda.read(buffer, &mut read).unwrap();
        assert!(read == written, "{len} bytes");
        assert!(cuda.wait(cuda.enqueue_read(buffer.slice(0..len)).unwrap()).unwrap() == written, "{len} bytes");
    }
}

/// A read brings what was there when it was enqueued: later writes do not overtake it, and it waits for none of them.
#[test]
fn reads_and_writes_keep_their_order() {
    const LEN: usize = 100_000;
    const ROUNDS: usize = 300;
    let Some((cuda, buffer)) = open(LEN) else { return };
    let mut on_their_way = Vec::new();
    for round in 0..ROUNDS {
        cuda.write(buffer, &bytes(LEN, round)).unwrap();
        on_their_way.push((round, cuda.enqueue_read(buffer).unwrap()));
        // Some are waited for late, some never, and not in their order.
        if round % 3 == 2 {
            let (round, pending) = on_their_way.swap_remove(round / 3);
            assert!(cuda.wait(pending).unwrap() == bytes(LEN, round), "round {round}");
        }
    }
    on_their_way.truncate(ROUNDS / 3);
    for (round, pending) in on_their_way {
        assert!(cuda.wait(pending).unwrap() == bytes(LEN, round), "round {round}");
    }
}
