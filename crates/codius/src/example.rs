//! The example that is written when there is no program to upload yet; it is the original's.

use serde_json::{Value, json};

/// `codius.json`.
pub(crate) fn codius() -> Value {
    json!({
        "manifest": {
            "name": "nginx-codius-pod",
            "version": "1.0.0",
            "machine": "small",
            "port": "80",
            "containers": [{
                "id": "app",
                "image": "nginx@sha256:3e2ffcf0edca2a4e9b24ca442d227baea7b7f0e33ad654ef1eb806fbd9bedcf0",
                "command": ["nginx", "-g", "daemon off;"],
                "workdir": "/root",
                "environment": {
                    "EXAMPLE_PUBLIC_ENV": "$EXAMPLE_PUBLIC_ENV",
                    "EXAMPLE_PRIVATE_ENV": "$EXAMPLE_PRIVATE_ENV"
                }
            }]
        }
    })
}

/// `codiusvars.json`.
pub(crate) fn codius_vars() -> Value {
    json!({
        "vars": {
            "public": { "EXAMPLE_PUBLIC_ENV": { "value": "Public Env Value" } },
            "private": { "EXAMPLE_PRIVATE_ENV": { "value": "Private Env Value" } }
        }
    })
}
