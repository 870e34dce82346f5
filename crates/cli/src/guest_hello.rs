//! `guest-hello`: boots the guest kernel once.

use std::time::Duration;

use dirigible_qemu::Hello;

use crate::{failure::Failure, print, qemu_args::GuestHello};

/// Aims: the longest time to the first line, and the largest kernel in bytes.
const AIM_FIRST_LINE: Duration = Duration::from_millis(500);
const AIM_BYTES: u64 = 2 << 20;

/// Boots the guest and prints how long it took.
///
/// # Errors
///
/// No QEMU, no kernel, or a guest that does not come up.
pub fn run(args: &GuestHello) -> Result<(), Failure> {
    let machine = args.qemu.find()?;
    let hello = dirigible_qemu::hello(&machine).map_err(|error| Failure::Run(error.to_string()))?;
    print::line(&format!("{}\n{}", machine.describe(), text(&hello)))
}

fn text(hello: &Hello) -> String {
    let Hello {
        first_line,
        end,
        kernel_bytes,
    } = *hello;
    let aim = |well| if well { "met" } else { "missed" };
    format!(
        "from start to the first line  {:.3} s (aim: less than {} s, {})\n\
         from start to the end         {:.3} s\n\
         size of the kernel            {:.2} MiB (aim: less than {} MiB, {})",
        first_line.as_secs_f64(),
        AIM_FIRST_LINE.as_secs_f64(),
        aim(first_line < AIM_FIRST_LINE),
        end.as_secs_f64(),
        kernel_bytes as f64 / f64::from(1 << 20),
        AIM_BYTES >> 20,
        aim(kernel_bytes < AIM_BYTES),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_met_or_missed() {
        let hello = Hello {
            first_line: Duration::from_millis(499),
            end: Duration::from_millis(1500),
            kernel_bytes: 3 << 20,
        };
        insta::assert_snapshot!(text(&hello), @r"
        from start to the first line  0.499 s (aim: less than 0.5 s, met)
        from start to the end         1.500 s
        size of the kernel            3.00 MiB (aim: less than 2 MiB, missed)
        ");
    }
}
