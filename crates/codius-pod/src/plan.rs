//! From a pod spec and its images to a pod that a driver can start.
//!
//! What an image says of how to run it and what the manifest says are merged here, as `docker run`
//! merges its command line with an image, and as the first Codius host did: the manifest's `command`
//! takes the place of the image's Cmd and leaves the Entrypoint, its `workdir` and each variable of
//! its `environment` take the place of the image's.

use codius_manifest::{PodSpec, RestartPolicy};

use crate::{ContainerStart, DriverError, Machine, PodStart, PreparedImage};

/// Directories that programs are looked up in when neither image nor manifest say so (Docker's).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Merges a pod spec with its images, which are in the order of its containers.
pub fn plan(
    spec: &PodSpec,
    machine: Machine,
    images: Vec<PreparedImage>,
) -> Result<PodStart, DriverError> {
    let mut containers = Vec::with_capacity(images.len());
    for (container, image) in spec.containers.iter().zip(images) {
        let command = container.command.as_deref().unwrap_or(&image.config.cmd);
        let args: Vec<String> = image
            .config
            .entrypoint
            .iter()
            .chain(command)
            .cloned()
            .collect();
        if args.first().is_none_or(String::is_empty) {
            return Err(DriverError::Unsupported {
                reason: format!(
                    "image {} of container {} does not say what to run; set `command` in the manifest",
                    container.image, container.id
                ),
            });
        }
        let workdir = match container.workdir.as_deref() {
            Some(workdir) if !workdir.is_empty() => workdir,
            _ if image.config.workdir.is_empty() => "/",
            _ => &image.config.workdir,
        };
        if !workdir.starts_with('/') {
            return Err(DriverError::Unsupported {
                reason: format!(
                    "workdir {workdir:?} of container {} is not absolute",
                    container.id
                ),
            });
        }
        containers.push(ContainerStart {
            id: container.id.clone(),
            args,
            env: environment(&image.config.env, &container.env),
            workdir: workdir.to_owned(),
            user: image.config.user.clone(),
            restart: match container.restart {
                RestartPolicy::No => codius_guest_protocol::RestartPolicy::No,
                RestartPolicy::OnFailure => codius_guest_protocol::RestartPolicy::OnFailure,
                RestartPolicy::Always => codius_guest_protocol::RestartPolicy::Always,
            },
            image,
        });
    }
    Ok(PodStart {
        hash: spec.hash,
        machine,
        port: spec.port,
        containers,
    })
}

/// The image's variables in their order, each replaced by the manifest's of the same name, then the
/// manifest's others; and a `PATH` in any case.
fn environment(image: &[String], manifest: &[(String, String)]) -> Vec<(String, String)> {
    let mut merged: Vec<(String, String)> = Vec::with_capacity(image.len() + manifest.len() + 1);
    let of_image = image
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(n, v)| (n.to_owned(), v.to_owned()));
    for (name, value) in of_image.chain(manifest.iter().cloned()) {
        match merged.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => merged.push((name, value)),
        }
    }
    if !merged.iter().any(|(name, _)| name == "PATH") {
        merged.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    merged
}

#[cfg(test)]
mod tests {
    use codius_manifest::Upload;

    use super::*;
    use crate::ImageConfig;

    fn planned(container: &str, config: ImageConfig) -> Result<ContainerStart, DriverError> {
        let body = format!(
            r#"{{"manifest":{{"name":"n","version":"1","containers":[{{"id":"app","image":"i"{container}}}]}}}}"#
        );
        let spec = Upload::parse(body.as_bytes())
            .unwrap()
            .pod_spec("http://host")
            .unwrap();
        let image = PreparedImage {
            digest: "sha256:0".into(),
            block_image: "/i".into(),
            config,
        };
        plan(&spec, Machine::SMALL, vec![image]).map(|mut pod| pod.containers.remove(0))
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["serve".into()],
            env: vec!["PATH=/bin".into(), "MODE=image".into()],
            workdir: "/app".into(),
            user: "www".into(),
        }
    }

    #[test]
    fn the_image_decides_where_the_manifest_is_silent() {
        let container = planned("", image()).unwrap();
        assert_eq!(container.args, ["/entry", "serve"]);
        assert_eq!(
            (container.workdir.as_str(), container.user.as_str()),
            ("/app", "www")
        );
        assert_eq!(container.env[0], ("PATH".into(), "/bin".into()));
    }

    #[test]
    fn the_manifest_takes_the_place_of_cmd_workdir_and_single_variables() {
        let container = planned(
            r#","command":["work","hard"],"workdir":"/w","environment":{"MODE":"manifest","NEW":"1"}"#,
            image(),
        )
        .unwrap();
        assert_eq!(container.args, ["/entry", "work", "hard"]);
        assert_eq!(container.workdir, "/w");
        assert_eq!(container.env[1], ("MODE".into(), "manifest".into()));
        assert_eq!(container.env.last().unwrap(), &("NEW".into(), "1".into()));
    }

    #[test]
    fn an_empty_image_gets_a_path_and_root_as_workdir_but_must_have_a_command() {
        let container = planned(r#","command":["sh"]"#, ImageConfig::default()).unwrap();
        assert_eq!(container.env[0], ("PATH".into(), DEFAULT_PATH.into()));
        assert_eq!(container.workdir, "/");
        let error = planned("", ImageConfig::default()).unwrap_err();
        assert!(error.to_string().contains("set `command`"), "{error}");
    }
}
