#pragma once
// Completion scripts, written from the same tree of commands that is parsed: what is offered is what works.

#include <string>
#include <string_view>

namespace CLI {
class App;
}

namespace mainstay {

/// `shell` is "bash" or "zsh". The script offers commands, their sub-commands and options.
std::string completion_script(const CLI::App& app, std::string_view shell);

}  // namespace mainstay
