//! `/metrics`: how the replica is, in the text format of Prometheus.

use std::fmt::Write as _;

use d3b::api::ClusterInfo;

/// The numbers of a replica.
pub(crate) fn text(cluster: &ClusterInfo) -> String {
    let is = |state: &str| u64::from(cluster.state == state);
    let divergent = cluster.divergent.len() as u64;
    let mut text = String::new();
    let numbers = [
        ("d3b_applied_slot", "The last slot that is applied here.", cluster.applied),
        ("d3b_commit_slot", "The last slot that is known to be chosen.", cluster.commit),
        ("d3b_epoch", "The number of the cluster's configuration.", cluster.epoch),
        ("d3b_leads", "1 while this replica leads.", is("leader")),
        ("d3b_has_leader", "1 while this replica knows of a leader.", u64::from(cluster.leader.is_some())),
        ("d3b_quarantined", "1 while this replica is quarantined.", is("quarantined")),
        ("d3b_divergent", "How often the data of a database differs from a peer's.", divergent),
    ];
    for (name, help, value) in numbers {
        // Writing into a string does not fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
    }
    let mut replicas = |name: &str, help: &str, value: &dyn Fn(&d3b::api::ReplicaInfo) -> Option<u64>| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for replica in &cluster.replicas {
            if let Some(value) = value(replica) {
                let _ = writeln!(text, "{name}{{replica=\"{}\"}} {value}", replica.id);
            }
        }
    };
    replicas("d3b_replica_reachable", "1 while the member is heard from.", &|replica| Some(replica.reachable.into()));
    replicas("d3b_replica_lag_slots", "How many slots the member is behind.", &|replica| replica.lag);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_a_name_and_a_meaning() {
        let mut cluster: ClusterInfo = serde_json::from_value(serde_json::json!({
            "cluster": "c", "replica": 1, "leader": 1, "ballot": "1.1", "epoch": 3, "commit": 9, "applied": 8,
            "state": "leader", "divergent": [],
            "replicas": [{ "id": 2, "peer": "p:1", "role": "voter", "applied": 7, "lag": 2, "reachable": true }],
        }))
        .unwrap();
        let numbers = text(&cluster);
        for line in ["d3b_leads 1", "d3b_quarantined 0", "d3b_applied_slot 8", "d3b_replica_lag_slots{replica=\"2\"} 2"]
        {
            assert!(numbers.lines().any(|found| found == line), "{line} in {numbers}");
        }
        cluster.state = "quarantined".to_owned();
        assert!(text(&cluster).contains("\nd3b_quarantined 1\n"));
    }
}
