//! Segments of anything but HTTP/2 as the programs in the kernel look at them: requests begin and end, whatever is sent.
#![no_main]

use interceptor_common::{
    flow::{Flow, Says, Segment, Trait},
    http1::head_of,
};
use libfuzzer_sys::{arbitrary, fuzz_target};

#[derive(Debug, arbitrary::Arbitrary)]
struct Input {
    is_host: bool,
    is_adopted: bool,
    seq: u32,
    ack: u32,
    unseen: u16,
    segments: Vec<Sent>,
}

#[derive(Debug, arbitrary::Arbitrary)]
struct Sent {
    is_clients: bool,
    gap: i16,
    after_us: u32,
    probe: bool,
    payload: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let Input { is_host, is_adopted, seq, ack, unseen, segments } = input;
    let mut flow = Flow::default();
    let (mut now, mut next) = (1_u64 << 33, [seq, ack]);
    let mut moved = vec![if is_adopted {
        flow.adopt(1, is_host, seq, ack)
    } else {
        flow.accept(1, is_host, (seq, unseen.into()), ack, now)
    }];
    for Sent { is_clients, gap, after_us, probe, payload } in segments {
        let len = u32::try_from(payload.len()).expect("inputs are small");
        if len == 0 {
            continue;
        }
        now += u64::from(after_us) * 1000;
        let at = &mut next[usize::from(!is_clients)];
        let seq = at.wrapping_add_signed(gap.into());
        *at = seq.wrapping_add(len);
        let head = head_of(&payload);
        let says = if is_clients {
            let shaken = flow.traits & Trait::SHAKEN != 0;
            let says =
                Says::client(shaken, &head, len, |at| head_of(payload.get(at as usize..).unwrap_or_default()));
            if probe { says | Says::PROBE } else { says }
        } else {
            Says::server(&head, len)
        };
        let segment = Segment { seq, len, says };
        moved.push(if is_clients { flow.received(&segment, now) } else { flow.sent(&segment, now) });
        assert!(is_balanced(&moved), "nothing ends that has not begun: {moved:?}");
    }
    moved.push(flow.closed(0, now));
    let (started, ended) = totals(&moved);
    assert_eq!(started, ended, "nothing is left outstanding");
});

fn totals(moved: &[interceptor_common::flow::Moved]) -> (u64, u64) {
    moved
        .iter()
        .fold((0, 0), |(started, ended), one| (started + u64::from(one.starts()), ended + u64::from(one.ends())))
}

fn is_balanced(moved: &[interceptor_common::flow::Moved]) -> bool {
    let (started, ended) = totals(moved);
    ended <= started
}
