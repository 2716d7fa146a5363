//! `purge` leaves the host as it was. The only test of its binary: it compares the whole machine.

use integration::harness::{Yard, is_root, until};
use integration::snapshot;
use nix::sched::{CloneFlags, unshare};

const PROGRAM: &str = env!("CARGO_BIN_EXE_podyard-under-test");

const EVERYTHING: &str = "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      volumes: [{name: memory, emptyDir: {medium: Memory}}]
      containers:
      - name: main
        image: podyard.local/toolbox
        command: [serve]
        volumeMounts: [{name: memory, mountPath: /m}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: pet}
spec:
  serviceName: pet
  replicas: 1
  selector: {matchLabels: {app: pet}}
  template:
    metadata: {labels: {app: pet}}
    spec:
      containers:
      - name: main
        image: podyard.local/host
        command: [/usr/bin/tail, -f, /dev/null]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
";

const ON_A_FURTHER_NODE: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: far}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: far}
spec:
  nodeSelector: {kubernetes.io/hostname: n1}
  volumes:
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: data, persistentVolumeClaim: {claimName: far}}
  containers:
  - name: main
    image: podyard.local/toolbox
    command: [serve]
    volumeMounts: [{name: memory, mountPath: /m}, {name: data, mountPath: /data}]
";

/// Runs the rest in a thread with a network namespace of its own, which stands for the host's: a yard that is
/// not isolated changes links, routes and rules there.
fn on_a_host_of_its_own(body: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace for the test");
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn root_purge_leaves_the_host_as_it_was() {
    if !is_root("purge") {
        return;
    }
    for isolated in [true, false] {
        on_a_host_of_its_own(move || {
            let yard = Yard::prepare(PROGRAM, "purge");
            let mut yard = if isolated { yard } else { yard.not_isolated() };
            let dir = yard.dir().to_path_buf();
            let before = snapshot::take(&[]);
            yard.start_daemon();
            yard.apply(EVERYTHING);
            yard.ready_count("app=web", 2);
            yard.ready("pet-0");
            yard.ok(&["node", "add", "n1"]);
            yard.apply(ON_A_FURTHER_NODE);
            yard.ready("far");
            assert!(
                !snapshot::difference(&before, &snapshot::take(&[])).is_empty(),
                "there is something to purge"
            );
            let ran = yard.purge();
            assert_eq!(ran.code, 0, "{ran:#?}");
            // A namespace is freed when its last process is reaped, which PID 1 may do seconds late.
            until("the machine is as it was", || {
                let left = snapshot::difference(&before, &snapshot::take(&[]));
                if left.is_empty() { Ok(()) } else { Err(left) }
            });
            for sub in ["run", "data", "log"] {
                assert!(!dir.join(sub).exists(), "{sub} is left");
            }
            assert_eq!(yard.purge().code, 0, "a second purge finds nothing and is content");
        });
    }
}
