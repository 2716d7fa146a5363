//! What Podyard acts on: of the fields Kubernetes knows, some are not implemented yet, and are never ignored silently.
//!
//! A message that is not listed is supported as a whole, as far as its parent is.

/// What Podyard does about a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// Acts on it, or it is data.
    Full,
    /// Accepts it with a warning: what runs is still safe without it.
    Later,
    /// Refuses it unless it is empty or false: without it, something would run with more rights, or without
    /// what its correctness rests on.
    Refused(&'static str),
}

/// Fields acted upon; other fields of these messages come later.
const IMPLEMENTED: &[(&str, &[&str])] = &[
    (
        "PodSpec",
        &[
            "initContainers",
            "containers",
            "restartPolicy",
            "terminationGracePeriodSeconds",
            "dnsPolicy",
            "nodeSelector",
            "nodeName",
            "affinity",
            "topologySpreadConstraints",
            "shareProcessNamespace",
            "securityContext",
            "hostname",
            "subdomain",
            "tolerations",
            "serviceAccountName",
            "serviceAccount",
            "volumes",
            // Defaults that clients write back; there is one scheduler.
            "schedulerName",
            "enableServiceLinks",
            "hostAliases",
            "dnsConfig",
            "os",
        ],
    ),
    (
        "Container",
        &[
            "name",
            "image",
            "command",
            "args",
            "workingDir",
            "ports",
            "env",
            "resources",
            "volumeMounts",
            "lifecycle",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "restartPolicy",
            "securityContext",
            "imagePullPolicy",
            "terminationMessagePath",
            "terminationMessagePolicy",
            "stdin",
            "tty",
        ],
    ),
    ("Lifecycle", &["postStart", "preStop", "stopSignal"]),
    ("LifecycleHandler", &["exec", "httpGet", "sleep"]),
    ("ContainerPort", &["name", "containerPort", "protocol"]),
    ("EnvVarSource", &["fieldRef", "resourceFieldRef"]),
    ("ResourceRequirements", &["limits", "requests"]),
    ("VolumeMount", &["name", "mountPath", "readOnly", "subPath"]),
    ("Volume", &["name"]),
    ("VolumeSource", &["emptyDir", "hostPath", "persistentVolumeClaim"]),
    ("ProbeHandler", &["exec", "httpGet", "tcpSocket"]),
    (
        "Probe",
        &[
            "handler",
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ],
    ),
    (
        "PodSecurityContext",
        &[
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "seccompProfile",
            "supplementalGroups",
            "fsGroup",
            "sysctls",
        ],
    ),
    (
        "SecurityContext",
        &[
            "runAsUser",
            "runAsGroup",
            "runAsNonRoot",
            "readOnlyRootFilesystem",
            "capabilities",
            "privileged",
            "allowPrivilegeEscalation",
            "seccompProfile",
        ],
    ),
    (
        "ServiceSpec",
        &[
            "ports",
            "selector",
            "clusterIP",
            "clusterIPs",
            "type",
            "sessionAffinity",
            "publishNotReadyAddresses",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ],
    ),
    ("ServicePort", &["name", "protocol", "port", "targetPort", "appProtocol"]),
    ("ReplicaSetSpec", &["replicas", "selector", "template", "minReadySeconds"]),
    (
        "StatefulSetSpec",
        &[
            "replicas",
            "selector",
            "template",
            "volumeClaimTemplates",
            "serviceName",
            "podManagementPolicy",
            "updateStrategy",
            "revisionHistoryLimit",
            "minReadySeconds",
            "persistentVolumeClaimRetentionPolicy",
            "ordinals",
        ],
    ),
    ("RollingUpdateStatefulSetStrategy", &["partition", "maxUnavailable"]),
    (
        "PersistentVolumeClaimSpec",
        &["accessModes", "resources", "volumeName", "storageClassName", "volumeMode", "selector"],
    ),
    (
        "PersistentVolumeSpec",
        &[
            "capacity",
            "persistentVolumeSource",
            "accessModes",
            "claimRef",
            "persistentVolumeReclaimPolicy",
            "storageClassName",
            "volumeMode",
        ],
    ),
    ("PersistentVolumeSource", &["hostPath", "local", "csi"]),
    (
        "StorageClass",
        &[
            "apiVersion",
            "kind",
            "metadata",
            "provisioner",
            "parameters",
            "reclaimPolicy",
            "volumeBindingMode",
        ],
    ),
    ("NodeSpec", &["podCIDR", "podCIDRs", "providerID", "unschedulable", "taints"]),
];

/// Fields refused, with the reason.
const REFUSED: &[(&str, &str, &str)] = &[
    ("PodSpec", "hostNetwork", "pods on the host's network are not implemented"),
    ("PodSpec", "hostPID", "pods in the host's process namespace are not implemented"),
    ("PodSpec", "hostIPC", "pods in the host's IPC namespace are not implemented"),
    ("PodSpec", "ephemeralContainers", "cannot be set here"),
    ("PodSpec", "runtimeClassName", "runtime classes, and the isolation they promise, are not implemented"),
    ("SecurityContext", "privileged", "privileged containers are not implemented"),
    ("SecurityContext", "procMount", "only the masked /proc is implemented"),
    ("SecurityContext", "seLinuxOptions", "SELinux confinement is not implemented"),
    ("SecurityContext", "appArmorProfile", "AppArmor confinement is not implemented"),
    ("SecurityContext", "windowsOptions", "this is Linux"),
    ("PodSecurityContext", "seLinuxOptions", "SELinux confinement is not implemented"),
    ("PodSecurityContext", "appArmorProfile", "AppArmor confinement is not implemented"),
    ("PodSecurityContext", "windowsOptions", "this is Linux"),
    ("VolumeMount", "mountPropagation", "mounts do not propagate between host and container"),
    ("VolumeMount", "subPathExpr", "expansion of paths is not implemented; use subPath"),
    ("Container", "volumeDevices", "raw block volumes are not implemented"),
    ("Container", "envFrom", "ConfigMap and Secret are not implemented"),
    ("EnvVarSource", "configMapKeyRef", "ConfigMap is not implemented"),
    ("EnvVarSource", "secretKeyRef", "Secret is not implemented"),
    ("VolumeSource", "configMap", "ConfigMap is not implemented"),
    ("VolumeSource", "secret", "Secret is not implemented"),
    ("VolumeSource", "projected", "projected volumes are not implemented"),
    ("VolumeSource", "downwardAPI", "downward API volumes are not implemented"),
    ("VolumeSource", "nfs", "only emptyDir, hostPath and persistentVolumeClaim are implemented"),
    ("VolumeSource", "csi", "only emptyDir, hostPath and persistentVolumeClaim are implemented"),
    ("VolumeSource", "iscsi", "only emptyDir, hostPath and persistentVolumeClaim are implemented"),
    ("VolumeSource", "ephemeral", "only emptyDir, hostPath and persistentVolumeClaim are implemented"),
    ("VolumeSource", "image", "only emptyDir, hostPath and persistentVolumeClaim are implemented"),
];

/// What Podyard does about one field.
pub(crate) fn of(message: &str, field: &str) -> Support {
    if let Some((_, _, why)) = REFUSED.iter().find(|(m, f, _)| (*m, *f) == (message, field)) {
        return Support::Refused(why);
    }
    match IMPLEMENTED.iter().find(|(m, _)| *m == message) {
        Some((_, fields)) if !fields.contains(&field) && field != "volumeSource" => Support::Later,
        _ => Support::Full,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SCHEMA;

    #[test]
    fn every_row_names_a_field() {
        let check = |message: &str, field: &str| {
            let found = SCHEMA.message(message).is_some_and(|m| m.fields.iter().any(|f| f.name == field));
            assert!(found, "{message}.{field}");
        };
        IMPLEMENTED
            .iter()
            .for_each(|(message, fields)| fields.iter().for_each(|field| check(message, field)));
        REFUSED.iter().for_each(|(message, field, _)| check(message, field));
    }
}
