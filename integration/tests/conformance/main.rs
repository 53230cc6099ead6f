//! One list of behaviours, over each level of the data plane: what clients, pods and KEDA see does not depend on who holds a
//! connection and who counts it.
//!
//! | level | clients connect to | held and counted by |
//! |---|---|---|
//! | none | the interceptor | the interceptor |
//! | self | the interceptor | the interceptor; its connections by the kernel, too |
//! | node | the Service's own address | the agent |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod behaviours;
mod site;

/// Each behaviour at a level.
macro_rules! conforms {
    ($level:ident, $variant:ident: $($behaviour:ident)*) => {
        mod $level {
            $(
                #[tokio::test]
                #[ignore = "needs root: run by cargo xtask test"]
                async fn $behaviour() {
                    crate::behaviours::$behaviour(crate::site::Level::$variant).await;
                }
            )*
        }
    };
}

/// Every behaviour at each level.
macro_rules! everywhere {
    ($($behaviours:tt)*) => {
        conforms!(none, None: $($behaviours)*);
        #[cfg(ebpf_object)]
        conforms!(own, Own: $($behaviours)*);
        #[cfg(ebpf_object)]
        conforms!(node, Node: $($behaviours)*);
    };
}

everywhere! {
    a_request_to_a_workload_at_zero_is_demand_and_is_answered_by_its_first_pod
    requests_are_counted_once_each
    a_request_in_flight_is_demand_until_its_answer_ends
    a_client_that_leaves_while_it_waits_is_no_demand
    who_has_waited_as_long_as_the_route_allows_waits_no_longer
    a_pod_that_is_ready_before_it_listens_fails_nobody
    what_has_waited_is_spread_over_the_pods
    bodies_pass_byte_for_byte_in_both_directions
    a_workload_that_sleeps_again_is_woken_again
    an_open_connection_without_requests_is_no_demand
}
