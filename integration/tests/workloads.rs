//! The manifests of the four workloads are accepted as they are. `cargo workload` runs them.

use integration::harness::Yard;

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

#[test]
fn root_manifests_are_accepted_without_a_warning() {
    let Some(yard) = Yard::start(PROGRAM, "workloads") else { return };
    for (name, manifest) in [
        ("etcd", include_str!("../workloads/etcd/etcd.yaml")),
        ("postgres", include_str!("../workloads/postgres/postgres.yaml")),
        ("mariadb", include_str!("../workloads/mariadb/mariadb.yaml")),
        ("zookeeper", include_str!("../workloads/zookeeper/zookeeper.yaml")),
    ] {
        let ran = yard.podyard_with(&["apply", "--dry-run=server", "-f", "-"], manifest);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{name}: {ran:#?}");
    }
}
