//! What an image says about its users to the guest agent: `User` of its configuration, its `/etc/passwd` and its
//! `/etc/group`. Whatever they say, a user is found within the limits, or a text says why not.
#![no_main]

use codius_fuzz::Choices;
use libfuzzer_sys::fuzz_target;

#[path = "../../crates/codius-guest-agent/src/accounts.rs"]
mod accounts;

fn text(choices: &mut Choices<'_>) -> String {
    String::from_utf8_lossy(choices.chunk()).into_owned()
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices::new(input);
    let (user, passwd, group) = (text(&mut choices), text(&mut choices), text(&mut choices));
    // Names that are looked up must often be there.
    let user = match choices.below(4) {
        0 => user,
        1 => passwd.split(':').next().unwrap_or("").to_owned(),
        2 => format!(
            "{}:{}",
            passwd.split(':').next().unwrap_or(""),
            group.split(':').next().unwrap_or("")
        ),
        _ => String::new(),
    };
    match accounts::resolve(&user, &passwd, &group) {
        Ok(account) => {
            // Numbers that mean "none" to the kernel never come out.
            assert!(account.uid <= i32::MAX as u32 && account.gid <= i32::MAX as u32);
            assert!(account.groups.len() <= 1024);
            assert!(!account.home.is_empty());
        }
        Err(why) => assert!(!why.is_empty()),
    }
});
