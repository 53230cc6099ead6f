//! The life of one counted connection: what is kept with its socket, and what each of the kernel's calls adds to the
//! counters. Pure, so that the rule "once and only once" is tested on the host; the programs only carry it out.

/// What is kept in the storage of a counted socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Conn {
    /// The slot whose counters it moves for its whole life, whatever becomes of the address.
    pub slot: u32,
    /// A [`Phase`].
    pub phase: u32,
}

const _: () = assert!(size_of::<Conn>() == 8);

/// How far a connection has come; a number, because it crosses into the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Phase;

/// What the kernel tells about a counted socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// It enters `TCP_ESTABLISHED`.
    Established,
    /// It enters `TCP_CLOSE`.
    Closed,
}

/// Which counter moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// None.
    Nothing,
    /// `opened`.
    Opened,
    /// `closed`.
    Closed,
    /// `failed`.
    Failed,
}

impl Phase {
    /// Nothing is outstanding: not begun, or ended and counted. Also what zeroed storage says.
    pub const DONE: u32 = 0;
    /// `attempted` was counted, and it is open how it ends.
    pub const CONNECTING: u32 = 1;
    /// `opened` was counted.
    pub const OPEN: u32 = 2;
}

impl Conn {
    /// Takes `event` and says which counter moves: each connection moves `opened` at most once, and exactly one of
    /// `closed` (if it was opened) and `failed` (if not). A socket that connects again begins anew.
    #[inline]
    #[must_use]
    pub fn step(&mut self, event: Event) -> Step {
        match (self.phase, event) {
            (Phase::CONNECTING, Event::Established) => {
                self.phase = Phase::OPEN;
                Step::Opened
            }
            (Phase::CONNECTING, Event::Closed) => {
                self.phase = Phase::DONE;
                Step::Failed
            }
            (Phase::OPEN, Event::Closed) => {
                self.phase = Phase::DONE;
                Step::Closed
            }
            _ => Step::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(events: &[Event]) -> Vec<Step> {
        let mut conn = Conn { slot: 1, phase: Phase::CONNECTING };
        events.iter().map(|&event| conn.step(event)).filter(|step| *step != Step::Nothing).collect()
    }

    #[test]
    fn a_connection_is_opened_and_closed_once() {
        assert_eq!(run(&[Event::Established, Event::Closed]), [Step::Opened, Step::Closed]);
        assert_eq!(
            run(&[Event::Established, Event::Established, Event::Closed, Event::Closed]),
            [Step::Opened, Step::Closed]
        );
    }

    #[test]
    fn a_connection_that_was_never_established_fails_once() {
        assert_eq!(run(&[Event::Closed]), [Step::Failed]);
        assert_eq!(run(&[Event::Closed, Event::Closed, Event::Established]), [Step::Failed]);
    }

    #[test]
    fn storage_that_nobody_filled_counts_nothing() {
        let mut conn = Conn::default();
        assert_eq!(conn.step(Event::Established), Step::Nothing);
        assert_eq!(conn.step(Event::Closed), Step::Nothing);
    }

    #[test]
    fn every_order_of_events_keeps_the_sums() {
        for bits in 0_u32..256 {
            let events: Vec<_> =
                (0..8).map(|i| if bits >> i & 1 == 0 { Event::Established } else { Event::Closed }).collect();
            let steps = run(&events);
            let count = |step| steps.iter().filter(|s| **s == step).count();
            assert!(count(Step::Opened) <= 1);
            assert!(count(Step::Closed) <= count(Step::Opened));
            assert!(count(Step::Opened) + count(Step::Failed) <= 1);
        }
    }
}
