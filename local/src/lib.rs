//! KEDA and the kubelet for one machine: an autoscaler whose pods are local processes, and its terminal view.
