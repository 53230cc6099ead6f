//! What only tests ask of the programs and their maps.

use std::{io, net::SocketAddr, time::Duration};

use aya::programs::{TestRun as _, TestRunOptions};
use interceptor_core::{frontends::Write, holding::Flow};

use super::{
    Direction, Hold, MARK_AT,
    attach::{EGRESS, INGRESS, classifier},
};

/// `TC_ACT_SHOT`.
const DROP: u32 = 2;

impl Hold {
    /// Gives the programs on devices a sign of life of another time.
    pub fn beat_as_of(&mut self, at: Duration) -> io::Result<()> {
        self.maps.frontends.beat(at)
    }

    /// Whether the program of a direction drops a frame that bears a mark, after so many runs.
    pub fn drops(&mut self, direction: Direction, frame: &[u8], mark: u32, runs: u32) -> io::Result<bool> {
        let name = match direction {
            Direction::In => INGRESS,
            Direction::Out => EGRESS,
        };
        Ok(self.run(name, frame, (mark, runs))?.0 == DROP)
    }

    /// The mark of a frame that came in with a mark.
    pub fn mark_after(&mut self, frame: &[u8], mark: u32) -> io::Result<u32> {
        Ok(self.run(INGRESS, frame, (mark, 1))?.1)
    }

    /// Runs a program on a frame: its verdict, and the mark that is left.
    fn run(&mut self, program: &str, frame: &[u8], (mark, runs): (u32, u32)) -> io::Result<(u32, u32)> {
        let (mut context, mut after) = ([0; 192], [0; 192]);
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            ctx_out: Some(&mut after),
            repeat: runs,
            ..Default::default()
        };
        let ran = classifier(&mut self.ebpf, program).and_then(|program| program.test_run(options));
        let verdict = ran.map_err(io::Error::other)?.return_value;
        let [.., a, b, c, d] = after[..MARK_AT + 4] else { return Ok((verdict, 0)) };
        Ok((verdict, u32::from_ne_bytes([a, b, c, d])))
    }

    /// Takes one address out of the map and puts another in, as somebody else might.
    pub fn tamper(&mut self, gone: SocketAddr, foreign: SocketAddr) -> io::Result<()> {
        self.maps.frontends.write(Write::Lead(foreign, 0))?;
        self.maps.frontends.write(Write::Forget(gone))
    }

    /// Notes a connection as tried, as [`send`](Self::send) does.
    pub fn note_tried(&mut self, flow: &Flow) -> io::Result<()> {
        self.maps.tried(flow)
    }

    /// Notes a connection as one that is being withdrawn, as [`withdraw`](Self::withdraw) does.
    pub fn note_withdrawn(&mut self, flow: &Flow) -> io::Result<()> {
        self.maps.withdraw(flow)
    }
}
