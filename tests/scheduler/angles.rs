//! Sequences that grow past the length up to which they have the short rotary angles.

use ocelli::engine::{PictureKey, Place, Scheduler, SchedulerLimits, Sequence, SequenceId, Step};
use ocelli::models::RowMap;

use super::{land, run, text, wide};

const SWITCH: usize = 32;

fn scheduler(limits: SchedulerLimits) -> Scheduler {
    Scheduler::new(SchedulerLimits { rope_switch: Some(SWITCH), ..limits }).unwrap()
}

/// Who has which tokens, and whether by the long angles.
fn rows(step: &Step) -> Vec<(SequenceId, usize, usize, bool)> {
    step.rows.iter().map(|r| (r.id, r.start, r.ids.len(), r.long)).collect()
}

#[test]
fn the_first_token_too_many_is_computed_with_all_before_it() {
    let mut s = scheduler(wide());
    s.add(text(1, SWITCH - 2, 9)).unwrap();
    let steps: Vec<_> = (0..5).flat_map(|_| rows(&run(&mut s))).collect();
    let expected =
        [(1, 0, 30, false), (1, 30, 1, false), (1, 31, 1, false), (1, 0, SWITCH + 1, true), (1, 33, 1, true)];
    assert_eq!(steps, expected);
    assert_eq!((s.counts().rope_switches, s.counts().preemptions), (1, 0));
}

#[test]
fn a_prompt_is_short_up_to_the_switch_and_long_behind_it() {
    let mut s = scheduler(SchedulerLimits { max_num_batched_tokens: 20, max_num_seqs: 4, ..wide() });
    s.add(text(1, SWITCH, 1)).unwrap();
    assert_eq!([rows(&run(&mut s)), rows(&run(&mut s))], [[(1, 0, 20, false)], [(1, 20, 12, false)]]);
    // Its only token is the last: nobody computes it.
    s.finish(1);
    s.add(text(2, SWITCH + 1, 9)).unwrap();
    let steps: Vec<_> = (0..3).flat_map(|_| rows(&run(&mut s))).collect();
    assert_eq!(steps, [(2, 0, 20, true), (2, 20, 13, true), (2, 33, 1, true)]);
    assert_eq!(s.counts().rope_switches, 0, "it was long from the start");
}

#[test]
fn without_a_switch_every_sequence_is_short() {
    let mut s = Scheduler::new(wide()).unwrap();
    s.add(text(1, 5000, 9)).unwrap();
    assert_eq!(rows(&run(&mut s)), [(1, 0, 5000, false)]);
}

/// With a step in flight, one that grows past the switch has no row in the next, and nobody waits for it.
#[test]
fn with_a_step_ahead_it_waits_for_its_token_alone() {
    let mut s = scheduler(wide());
    s.add(text(1, SWITCH - 1, 9)).unwrap();
    s.add(text(2, 3, 9)).unwrap();
    let first = s.schedule();
    let second = s.schedule();
    assert_eq!(rows(&second), [(1, 31, 1, false), (2, 3, 1, false)], "32 tokens are not too many");
    land(&mut s, &first);
    let third = s.schedule();
    assert_eq!(rows(&third), [(2, 4, 1, false)], "token 33 is not known");
    assert_eq!(s.counts().rope_switches, 0);
    land(&mut s, &second);
    let fourth = s.schedule();
    assert_eq!(rows(&fourth), [(2, 5, 1, false), (1, 0, 33, true)]);
    assert!(s.sequence(1).unwrap().ids()[32] == 0 && fourth.rows[1].ids[32] == 0, "the token itself, not where it is");
    land(&mut s, &third);
    let fifth = s.schedule();
    assert_eq!(rows(&fifth), [(1, 33, 1, true), (2, 6, 1, false)], "one step ahead again");
    assert_eq!(fifth.rows[0].ahead, 1);
    s.check().unwrap();
}

#[test]
fn its_pictures_are_read_again() {
    for (encoder_caching, again) in [(true, 0), (false, 1)] {
        let mut s = scheduler(SchedulerLimits { page_rows: 8, encoder_caching, ..wide() });
        let ids = [&[5; 10][..], &[-1; 20], &[6]].concat();
        let place = Place { start: 10, rows: RowMap::straight(20), tiles: 3, key: PictureKey([1; 32]) };
        s.add(Sequence::new(1, ids, vec![place], 60, "")).unwrap();
        let first = run(&mut s);
        assert!(s.sequence(1).unwrap().reading().is_empty());
        run(&mut s);
        let long = run(&mut s);
        assert_eq!(rows(&long), [(1, 0, 33, true)]);
        assert_eq!(long.encode.len(), again, "encoder_caching {encoder_caching}");
        if encoder_caching {
            assert_eq!(long.rows[0].ids[10..30], first.rows[0].ids[10..30], "the same rows");
        }
        assert!(long.rows[0].ids[10..30].iter().all(|&id| id < 0));
        assert!(s.sequence(1).unwrap().reading().is_empty());
        s.check().unwrap();
    }
}

#[test]
fn short_blocks_serve_no_long_sequence_nor_long_ones_a_short() {
    let mut s = scheduler(wide());
    let of = |id, tokens: usize| Sequence::new(id, vec![3; tokens], vec![], 90, "");
    let cached = |s: &mut Scheduler, sequence: Sequence| {
        let id = sequence.id();
        s.add(sequence).unwrap();
        let step = run(s);
        let start = step.rows.iter().find(|r| r.id == id).unwrap().start;
        s.finish(id);
        start
    };
    assert_eq!(cached(&mut s, of(1, 32)), 0);
    assert_eq!(cached(&mut s, of(2, 64)), 0, "what is there has the short angles");
    assert_eq!(cached(&mut s, of(3, 32)), 16, "the first block, and its last token must be seen");
    assert_eq!(cached(&mut s, of(4, 70)), 64);
    let mut alone = scheduler(wide());
    assert_eq!(cached(&mut alone, of(1, 64)), 0);
    assert_eq!(cached(&mut alone, of(2, 32)), 0, "what is there has the long angles");
}

/// What long sequences have left serves one that becomes long.
#[test]
fn one_that_grows_begins_with_what_long_ones_left() {
    let mut s = scheduler(wide());
    let of = |id, tokens: usize| Sequence::new(id, vec![0; tokens], vec![], 90, "");
    s.add(of(1, 48)).unwrap();
    run(&mut s);
    s.finish(1);
    s.add(of(2, 32)).unwrap();
    assert_eq!(rows(&run(&mut s)), [(2, 0, 32, false)]);
    assert_eq!(rows(&run(&mut s)), [(2, 32, 1, true)]);
    assert_eq!(s.counts().rope_switches, 1);
    // What it left is found by those that are short.
    s.add(of(3, 32)).unwrap();
    assert_eq!(rows(&run(&mut s)), [(2, 33, 1, true), (3, 16, 16, false)]);
}

/// It needs other blocks than those it shares: the latest arrival gives way.
#[test]
fn it_takes_blocks_from_those_that_came_later() {
    let mut s = scheduler(SchedulerLimits { kv_blocks: 4, ..wide() });
    let of = |id, tokens: usize, last: i32| {
        let mut ids = vec![3; tokens];
        ids[tokens - 1] = last;
        Sequence::new(id, ids, vec![], 60, "")
    };
    s.add(of(1, 31, 1)).unwrap();
    run(&mut s);
    s.add(of(2, 20, 2)).unwrap();
    assert_eq!(rows(&run(&mut s)), [(1, 31, 1, false), (2, 16, 4, false)], "the first block is that of both");
    // One of the four is free, one is given back, and three are needed.
    let step = run(&mut s);
    assert_eq!((rows(&step), step.preempted), (vec![(1, 0, 33, true)], vec![2]));
    assert_eq!(rows(&run(&mut s)), [(1, 33, 1, true)]);
    s.finish(1);
    let step = run(&mut s);
    assert_eq!((step.admitted, step.rows[0].id, step.rows[0].long), (vec![2], 2, false));
    assert_eq!((s.counts().rope_switches, s.counts().preemptions), (1, 1));
}

/// With a step in flight nothing is taken from anybody: the next is planned when its outcome is known.
#[test]
fn it_takes_nothing_from_those_in_flight() {
    let mut s = scheduler(SchedulerLimits { kv_blocks: 4, ..wide() });
    s.add(Sequence::new(1, vec![3; 31], vec![], 60, "")).unwrap();
    run(&mut s);
    s.add(Sequence::new(2, vec![3; 20], vec![], 60, "")).unwrap();
    let first = s.schedule();
    assert_eq!(rows(&first), [(1, 31, 1, false), (2, 16, 4, false)]);
    let second = s.schedule();
    assert_eq!(rows(&second), [(2, 20, 1, false)]);
    land(&mut s, &first);
    let none = s.schedule();
    assert!(none.rows.is_empty() && none.preempted.is_empty(), "{none:?}");
    s.check().unwrap();
    land(&mut s, &second);
    let step = run(&mut s);
    assert_eq!((rows(&step), step.preempted), (vec![(1, 0, 33, true)], vec![2]));
    assert_eq!(s.counts().rope_switches, 1);
}

#[test]
fn one_that_outgrows_its_angles_may_have_to_wait_itself() {
    // Both need two of the five blocks while they are short, and three when they are long.
    let mut s = scheduler(SchedulerLimits { kv_blocks: 5, prefix_caching: false, ..wide() });
    s.add(text(1, 31, 40)).unwrap();
    s.add(text(2, 31, 9)).unwrap();
    let mut preempted = Vec::new();
    let mut long = Vec::new();
    while s.sequence(1).is_some() {
        let step = s.schedule();
        preempted.extend(step.preempted.clone());
        long.extend(step.rows.iter().filter(|r| r.id == 2 && r.start == 0).map(|r| (r.ids.len(), r.long)));
        land(&mut s, &step);
        s.check().unwrap();
        let full = |s: &Scheduler, id, n| s.sequence(id).is_some_and(|q| q.ids().len() == n);
        for (id, n) in [(1, 71), (2, 40)] {
            if full(&s, id, n) {
                s.finish(id);
            }
        }
    }
    assert_eq!(preempted, [2]);
    assert_eq!(long, [(31, false)], "it comes back when the first has gone");
    while !s.is_idle() {
        let step = run(&mut s);
        long.extend(step.rows.iter().filter(|r| r.start == 0).map(|r| (r.ids.len(), r.long)));
        if s.sequence(2).is_some_and(|q| q.ids().len() == 40) {
            s.finish(2);
        }
    }
    assert_eq!(long, [(31, false), (33, true)]);
    assert_eq!(s.blocks().free, 5);
}

#[test]
fn one_that_is_given_up_meanwhile_leaves_nothing_behind() {
    // While nobody knows its token, before it is computed again, and amid that.
    for steps in 0..3 {
        let mut s = scheduler(SchedulerLimits { max_num_batched_tokens: 20, max_num_seqs: 2, ..wide() });
        s.add(text(1, SWITCH, 9)).unwrap();
        run(&mut s);
        let flight = s.schedule();
        assert!(flight.rows[0].samples && s.schedule().rows.is_empty());
        if steps == 0 {
            assert!(s.finish(1));
            assert!(s.blocks().used > 0, "a step in flight has a row of it");
        }
        land(&mut s, &flight);
        if steps > 0 {
            (1..steps).for_each(|_| assert_eq!(rows(&run(&mut s)), [(1, 0, 20, true)]));
            assert!(s.finish(1));
        }
        s.check().unwrap();
        assert!(s.is_idle() && s.blocks().used == 0, "{steps}");
    }
}

/// A step that fails takes only those with a row in it; one that has just begun again and has none goes on.
#[test]
fn a_step_that_fails_takes_it_if_it_has_a_row() {
    let mut s =
        scheduler(SchedulerLimits { max_num_batched_tokens: 33, max_num_seqs: 2, prefix_caching: false, ..wide() });
    s.add(text(1, SWITCH, 9)).unwrap();
    run(&mut s);
    let step = s.schedule();
    assert_eq!(rows(&step), [(1, 0, 33, true)]);
    assert_eq!(s.failed(&step), [1]);
    s.check().unwrap();
    assert!(s.is_idle() && s.blocks().used == 0);
}
