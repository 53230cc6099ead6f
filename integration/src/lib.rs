//! Tests of the whole: real processes, foreign peers, both data plane levels.
