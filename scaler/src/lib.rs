//! KEDA's external scaler: collects the counts of interceptors, answers and pushes to KEDA.
