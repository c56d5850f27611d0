//! How much memory this process can still have.

/// Bytes that can still be had, where Linux says so: the least of what the machine has free, what control groups leave
/// (a container's limit, say), and what `ulimit -v` leaves.
pub fn available() -> Option<usize> {
    [machine(), control_groups(), address_space()].into_iter().flatten().min()
}

fn machine() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<usize>().ok().map(|kib| kib * 1024)
}

/// What the process's control group and those above it leave; files in the system's cache are given back on demand.
fn control_groups() -> Option<usize> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, group) = (fields.next()?, fields.next()?);
            let (root, limit, usage, cache) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
                _ if controllers.split(',').any(|name| name == "memory") => (
                    "/sys/fs/cgroup/memory",
                    "memory.limit_in_bytes",
                    "memory.usage_in_bytes",
                    "total_inactive_file",
                ),
                _ => return None,
            };
            let root = std::path::Path::new(root);
            // In a container the group's name is that of the machine outside: its root is this one's.
            let group = root.join(group.trim_start_matches('/'));
            group
                .ancestors()
                .take_while(|group| group.starts_with(root))
                .filter_map(|group| {
                    let read = |file: &str| std::fs::read_to_string(group.join(file)).ok();
                    let number = |file: &str| read(file)?.trim().parse::<usize>().ok();
                    let stat = read("memory.stat").unwrap_or_default();
                    let cached = stat
                        .lines()
                        .find_map(|line| line.strip_prefix(cache)?.trim().parse::<usize>().ok());
                    let used = number(usage)?.saturating_sub(cached.unwrap_or(0));
                    Some(number(limit)?.saturating_sub(used))
                })
                .min()
        })
        .min()
}

#[cfg(unix)]
fn address_space() -> Option<usize> {
    use rustix::process::{Resource, getrlimit};
    let limit = usize::try_from(getrlimit(Resource::As).current?).ok()?;
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: usize = pages.split_whitespace().next()?.parse().ok()?;
    Some(limit.saturating_sub(pages * rustix::param::page_size()))
}

#[cfg(not(unix))]
fn address_space() -> Option<usize> {
    None
}
