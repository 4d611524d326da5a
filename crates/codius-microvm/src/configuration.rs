//! What the agent of a pod is told, made of what the driver is told.

use std::{
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use codius_guest_protocol::{ContainerConfig, MAX_LINE_BYTES, NetworkConfig, PodConfig, encode};
use codius_pod::PodStart;
use data_encoding::HEXLOWER;

use crate::{driver::Shared, limits::MAX_PROCESSES, network::TAP_PREFIX_LEN};

/// Each image once, and for each container which it is.
pub(crate) fn distinct_images(pod: &PodStart) -> (Vec<PathBuf>, Vec<usize>) {
    let mut digests: Vec<&str> = Vec::new();
    let mut images = Vec::new();
    let mut of_container = Vec::new();
    for container in &pod.containers {
        let image = &container.image;
        let index = digests
            .iter()
            .position(|digest| *digest == image.digest)
            .unwrap_or_else(|| {
                digests.push(&image.digest);
                images.push(image.block_image.clone());
                digests.len() - 1
            });
        of_container.push(index);
    }
    (images, of_container)
}

pub(crate) fn image_serial(index: usize) -> String {
    format!("img{index}")
}

pub(crate) fn pod_config(
    shared: &Shared,
    pod: &PodStart,
    slot: u16,
    serials: &[usize],
) -> PodConfig {
    let block = shared.pool.block(slot);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    PodConfig {
        entropy_hex: HEXLOWER.encode(&rand::random::<[u8; 32]>()),
        now_unix_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        hostname: pod.hash.to_string(),
        network: Some(NetworkConfig {
            address: block.guest(),
            prefix_len: TAP_PREFIX_LEN,
            gateway: block.gateway(),
            nameservers: shared.nameservers.clone(),
        }),
        port: pod.port,
        containers: container_configs(pod, serials),
    }
}

fn container_configs(pod: &PodStart, images: &[usize]) -> Vec<ContainerConfig> {
    let containers = pod.containers.iter().zip(images);
    let configs = containers.map(|(container, &image)| ContainerConfig {
        id: container.id.clone(),
        image_serial: image_serial(image),
        args: container.args.clone(),
        env: container.env.clone(),
        workdir: container.workdir.clone(),
        user: container.user.clone(),
        memory_bytes: u64::from(pod.machine.memory_mib) * 1024 * 1024,
        max_processes: MAX_PROCESSES,
        restart: container.restart,
    });
    configs.collect()
}

/// Whether what the agent has to be told of the containers fits into one line of the protocol.
pub(crate) fn fits_one_line(pod: &PodStart) -> bool {
    // For the little that a configuration holds beside its containers.
    const REST: usize = 4096;
    let (_, images) = distinct_images(pod);
    encode(&container_configs(pod, &images)).len() + REST <= MAX_LINE_BYTES
}
