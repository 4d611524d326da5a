//! Pods as QEMU microVMs: process, network and guest channel.
