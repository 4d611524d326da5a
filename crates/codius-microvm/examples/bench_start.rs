//! How long a pod takes from `start` to its first byte, against a bare boot of the same kernel and initramfs
//! to the agent's first word, in turn, under emulation. One JSON line a figure.
//!
//! ```text
//! bench_start GUEST_DIR BLOCK_IMAGE [RUNS]      BLOCK_IMAGE: a squashfs with /bin/busybox in it
//! ```

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use codius_guest_protocol::{
    AgentMessage, HostMessage, Line, LineReader, MAX_GUEST_LINE_BYTES, PORT_NAME, encode,
};
use codius_manifest::ManifestHash;
use codius_microvm::{AcceleratorChoice, Instance, MicrovmConfig, MicrovmDriver};
use codius_pod::{
    ContainerStart, Driver, Duplex, EgressPolicy, ImageConfig, Machine, PodEvent, PodEvents,
    PodStart, PreparedImage,
};

/// Between two tries to get an answer: small against what is measured.
const POLL: Duration = Duration::from_millis(1);
const AIM: f64 = 1.7;

struct Quiet;

impl PodEvents for Quiet {
    fn event(&self, _event: PodEvent) {}
    fn interledger(&self, _connection: Box<dyn Duplex>) {}
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let guest_dir = arguments.next().context("GUEST_DIR is missing")?;
    let image = arguments.next().context("BLOCK_IMAGE is missing")?;
    let runs: usize = arguments.next().map_or(Ok(7), |text| text.parse())?;

    let dir = tempfile::tempdir()?;
    let number = std::process::id();
    let config = MicrovmConfig {
        state_dir: dir.path().join("state"),
        guest_dir: guest_dir.clone().into(),
        instance: Instance::of_data_dir(dir.path()),
        accelerator: AcceleratorChoice::Tcg,
        pool: format!("10.{}.{}.0/24", 64 + number / 256 % 64, number % 256).parse()?,
        nameservers: Vec::new(),
        warm: None,
        egress: EgressPolicy::default(),
        uid_base: MicrovmConfig::DEFAULT_UID_BASE,
    };
    let driver = MicrovmDriver::open(config).await?;
    let mut bare = Vec::new();
    let mut pods = Vec::new();
    for _ in 0..runs {
        bare.push(bare_boot(Path::new(&guest_dir), dir.path())?);
        pods.push(pod_start(&driver, &image).await?);
    }
    driver.retire().await?;
    let (bare, pod) = (median(&mut bare), median(&mut pods));
    let ratio = pod.as_secs_f64() / bare.as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "name": "start", "median": pod.as_millis(), "bare_boot": bare.as_millis(),
            "ratio": ratio, "aim": AIM, "met": ratio <= AIM, "unit": "ms", "runs": runs,
        })
    );
    Ok(())
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn pod_start(driver: &MicrovmDriver, image: &str) -> Result<Duration> {
    let hash = ManifestHash::from_bytes([7; 32]);
    let image = PreparedImage {
        digest: "sha256:bench".into(),
        block_image: image.into(),
        config: ImageConfig::default(),
    };
    let script = "echo ready > /tmp/index.html; exec /bin/busybox httpd -f -p 8080 -h /tmp";
    let pod = PodStart {
        hash,
        machine: Machine::SMALL,
        port: Some(8080),
        containers: vec![ContainerStart {
            id: "web".into(),
            image,
            args: ["/bin/busybox", "sh", "-c", script]
                .map(str::to_owned)
                .to_vec(),
            env: Vec::new(),
            workdir: "/".into(),
            user: String::new(),
            restart: codius_guest_protocol::RestartPolicy::No,
        }],
    };
    let begin = Instant::now();
    let running = driver.start(pod, Arc::new(Quiet)).await?;
    let address = running.address.context("the pod has a port")?;
    tokio::task::spawn_blocking(move || {
        while begin.elapsed() < Duration::from_secs(60) {
            if let Ok(mut stream) = TcpStream::connect(address) {
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                stream.read_exact(&mut [0])?;
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
        bail!("the pod does not answer")
    })
    .await??;
    let taken = begin.elapsed();
    driver.stop(&hash, Duration::ZERO).await?;
    Ok(taken)
}

/// Nothing but kernel, agent and the line to it.
fn bare_boot(guest: &Path, dir: &Path) -> Result<Duration> {
    let socket = dir.join("bare.sock");
    let _ = fs::remove_file(&socket);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let mhz = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("cpu MHz")?.rsplit(' ').next());
    let khz = mhz.context("no processor clock")?.replace('.', "");
    let options =
        format!("quiet panic=-1 cryptomgr.notests=1 audit=0 tsc_early_khz={khz} tsc=reliable");
    let begin = Instant::now();
    let mut qemu = Command::new("qemu-system-x86_64")
        .args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-m",
            "576",
        ])
        .args([
            "-machine",
            "microvm,rtc=on,pit=off,pic=off,memory-backend=m",
        ])
        .args(["-object", "memory-backend-memfd,id=m,size=576M,share=on"])
        .args([
            "-accel",
            "tcg,tb-size=32",
            "-cpu",
            "max",
            "-append",
            &options,
            "-kernel",
        ])
        .arg(guest.join("vmlinux"))
        .arg("-initrd")
        .arg(guest.join("initramfs.cpio"))
        .args([
            "-chardev",
            &format!("socket,id=a,path={},server=on,wait=off", socket.display()),
        ])
        .args(["-device", "virtio-serial-device", "-device"])
        .arg(format!("virtserialport,chardev=a,name={PORT_NAME}"))
        .stdin(Stdio::null())
        .spawn()?;
    let answered = first_word(&socket, begin);
    let taken = begin.elapsed();
    qemu.kill()?;
    qemu.wait()?;
    answered.map(|()| taken)
}

fn first_word(socket: &Path, begin: Instant) -> Result<()> {
    let mut reader = LineReader::new(MAX_GUEST_LINE_BYTES);
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(_) if begin.elapsed() < Duration::from_secs(10) => std::thread::sleep(POLL),
            Err(error) => return Err(error).context("QEMU does not listen"),
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&encode(&HostMessage::Attach {
        nonce: "bench".into(),
    }))?;
    let mut buffer = [0; 4096];
    let mut answered = false;
    while !answered {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            bail!("the guest ended");
        }
        reader.push(&buffer[..count], |line: Line<AgentMessage>| {
            answered |= matches!(line, Line::Message(AgentMessage::Hello { .. }));
        });
    }
    Ok(())
}
