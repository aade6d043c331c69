//! Who gets what when there is not enough for everybody.

use std::time::Instant;

use ocelli::engine::{PictureKey, Place, Scheduler, SchedulerLimits, Sequence};
use ocelli::models::RowMap;

use super::{land, text, wide};

#[test]
fn decode_rows_come_first_and_prompts_share_what_is_left_in_the_order_of_arrival() {
    let mut s = Scheduler::new(SchedulerLimits { max_num_seqs: 4, max_num_batched_tokens: 20, ..wide() }).unwrap();
    let run = |s: &mut Scheduler| super::run(s).rows.iter().map(|r| (r.id, r.start, r.ids.len())).collect::<Vec<_>>();
    s.add(text(1, 30, 9)).unwrap();
    s.add(text(2, 25, 9)).unwrap();
    assert_eq!(run(&mut s), [(1, 0, 20)]);
    assert_eq!(run(&mut s), [(1, 20, 10), (2, 0, 10)]);
    s.add(text(3, 5, 9)).unwrap();
    assert_eq!(run(&mut s), [(1, 30, 1), (2, 10, 15), (3, 0, 4)]);
    // The last token of a prompt is a single token as well.
    assert_eq!(run(&mut s), [(1, 31, 1), (2, 25, 1), (3, 4, 1)]);
}

#[test]
fn the_latest_arrival_gives_way_and_comes_back_first() {
    let limits = SchedulerLimits { kv_blocks: 3, prefix_caching: false, ..wide() };
    let mut s = Scheduler::new(limits).unwrap();
    s.add(text(1, 15, 20)).unwrap();
    s.add(text(2, 16, 10)).unwrap();
    s.add(text(3, 4, 2)).unwrap();
    let mut preempted = Vec::new();
    let mut order = Vec::new();
    for _ in 0..60 {
        let step = s.schedule();
        s.ran(&step);
        preempted.extend(step.preempted.clone());
        for row in step.rows.iter().filter(|r| r.samples) {
            s.push(row.id, 0);
            let sequence = s.sequence(row.id).unwrap();
            if sequence.ids().len() == [35, 26, 6][row.id as usize - 1] {
                s.finish(row.id);
                order.push(row.id);
            }
        }
    }
    assert_eq!(preempted.first(), Some(&2));
    assert_eq!(order, [1, 2, 3], "nobody is overtaken");
    assert!(s.is_idle() && s.blocks().free == 3);
}

/// The older of two that wait for the same picture takes the whole step, and the other was found in the cache as far as the
/// middle of it. Were it a reader already, it would stay one if that step failed, of rows that nobody computed.
#[test]
fn nobody_reads_a_picture_in_a_step_without_a_row_of_it() {
    let limits = SchedulerLimits {
        max_num_batched_tokens: 32,
        max_num_seqs: 4,
        pages: 1,
        page_rows: 16,
        encoder_caching: false,
        ..wide()
    };
    let mut s = Scheduler::new(limits).unwrap();
    let run = |s: &mut Scheduler| super::run(s).rows.iter().map(|r| (r.id, r.ids.len())).collect::<Vec<_>>();
    // 16 tokens of a picture from `before` on, among `len`.
    let shows = |id, picture: u8, before: usize, [first, after]: [i32; 2], len: usize| {
        let mut ids = vec![after; len];
        ids[..before].fill(first);
        ids[before..before + 16].fill(-1);
        let place = Place { start: before, rows: RowMap::straight(16), tiles: 1, key: PictureKey([picture; 32]) };
        Sequence::new(id, ids, vec![place], len + 9, "")
    };
    s.add(shows(1, b'p', 8, [7, 1], 32)).unwrap();
    assert_eq!(run(&mut s), [(1, 32)]);
    s.finish(1);
    // Holds the only page until it has passed its picture.
    s.add(shows(2, b'q', 24, [2, 2], 40)).unwrap();
    assert_eq!(run(&mut s), [(2, 32)]);
    s.add(shows(3, b'p', 8, [3, 3], 100)).unwrap();
    // Block 0 of the first, which ends amid the picture.
    s.add(shows(4, b'p', 8, [7, 4], 60)).unwrap();
    assert_eq!(run(&mut s), [(2, 8), (3, 8)]);
    assert_eq!(s.sequence(4).unwrap().cached(), 16);
    assert_eq!(run(&mut s), [(2, 1), (3, 31)]);
    assert!(s.sequence(4).unwrap().reading().is_empty());
}

#[test]
fn what_fits_nowhere_is_refused_with_the_numbers_and_the_flags() {
    let mut s = Scheduler::new(SchedulerLimits { kv_blocks: 2, ..wide() }).unwrap();
    let error = s.add(text(1, 30, 4)).unwrap_err().to_string();
    assert!(error.contains("30 tokens") && error.contains("up to 4 need 3 cache blocks") && error.contains("are 2"));
    assert!(error.contains("--gpu-memory-utilization") && error.contains("--num-gpu-blocks-override"), "{error}");
    s.add(text(2, 30, 3)).unwrap();
    let narrow = SchedulerLimits { max_num_seqs: 8, max_num_batched_tokens: 7, ..wide() };
    assert!(Scheduler::new(narrow).unwrap_err().to_string().contains("max_num_seqs is 8"));
}

/// A figure, not a promise: what the scheduler adds to a step of 256 sequences.
#[test]
fn what_a_step_of_256_sequences_takes() {
    let mut s = Scheduler::new(wide()).unwrap();
    (1..=256).for_each(|id| s.add(text(id, 645, 200)).unwrap());
    let (mut times, mut tokens) = (Vec::new(), 0);
    while tokens < 256 * 150 {
        let start = Instant::now();
        let step = s.schedule();
        land(&mut s, &step);
        tokens += step.rows.iter().filter(|r| r.samples).count();
        if step.rows.iter().all(|r| r.ids.len() == 1) && step.rows.len() == 256 {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    times.sort_by(f64::total_cmp);
    println!("256 decode rows: median {:.0} us, largest {:.0} us", times[times.len() / 2], times[times.len() - 1]);
}
