"""The fields of a JobSet that ours has, and no others: a misspelt one is an error.

Written down from the JobSet CRD, version v1alpha2 (kubernetes-sigs/jobset, Apache 2.0,
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml), where an unknown field is not
an error but is dropped without a word.
"""


def fields(required=(), **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def many(items, least=1):
    return {"type": "array", "items": items, "minItems": least}


def one_of(*values):
    return {"enum": list(values)}


TEXT, YES_OR_NO = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"}

_CONTAINER = fields(
    ("name", "image"),
    name=NAME,
    image=TEXT,
    command=many(TEXT),
    env=many(fields(("name", "value"), name=TEXT, value=TEXT)),
    ports=many(fields(("containerPort",), containerPort=COUNT)),
    resources=fields(limits={"type": "object", "additionalProperties": COUNT}),
    volumeMounts=many(fields(("name", "mountPath"), name=NAME, mountPath=TEXT)),
)
_VOLUME = fields(
    ("name",),
    name=NAME,
    persistentVolumeClaim=fields(("claimName",), claimName=NAME),
    emptyDir=fields(medium=one_of("", "Memory")),
)
_POD = fields(
    ("containers", "restartPolicy"),
    # A job with a podFailurePolicy takes no other.
    restartPolicy=one_of("Never"),
    terminationGracePeriodSeconds=COUNT,
    containers=many(_CONTAINER),
    volumes=many(_VOLUME),
)
_EXIT_CODES = fields(
    ("operator", "values"),
    containerName=NAME,
    operator=one_of("In", "NotIn"),
    values=many({"type": "integer", "minimum": 1}),
)
_JOB = fields(
    ("template",),
    completionMode=one_of("Indexed", "NonIndexed"),
    completions=COUNT,
    parallelism=COUNT,
    backoffLimit=COUNT,
    podFailurePolicy=fields(
        ("rules",),
        rules=many(
            fields(
                ("action", "onExitCodes"),
                action=one_of("FailJob", "FailIndex", "Ignore", "Count"),
                onExitCodes=_EXIT_CODES,
            )
        ),
    ),
    template=fields(("spec",), spec=_POD),
)
_FAILURE = fields(
    maxRestarts=COUNT,
    rules=many(
        fields(
            ("name", "action"),
            name={
                "type": "string",
                "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
            },
            action=one_of(
                "FailJobSet",
                "RestartJobSet",
                "RestartJobSetAndIgnoreMaxRestarts",
                "RestartJob",
                "RestartJobAndIgnoreMaxRestarts",
            ),
            onJobFailureReasons=many(
                # Reasons of a failed Job (Kubernetes' batch/v1).
                one_of(
                    "BackoffLimitExceeded",
                    "DeadlineExceeded",
                    "FailedIndexes",
                    "MaxFailedIndexesExceeded",
                    "PodFailurePolicy",
                )
            ),
        )
    ),
)
SCHEMA = fields(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
    kind=one_of("JobSet"),
    metadata=fields(("name",), name=NAME),
    spec=fields(
        ("replicatedJobs",),
        network=fields(
            enableDNSHostnames=YES_OR_NO,
            subdomain=NAME,
            publishNotReadyAddresses=YES_OR_NO,
        ),
        failurePolicy=_FAILURE,
        replicatedJobs=many(
            fields(
                ("name", "template"),
                name=NAME,
                replicas=COUNT,
                template=fields(("spec",), spec=_JOB),
            )
        ),
    ),
)
