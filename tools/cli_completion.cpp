#include "tools/cli_completion.h"

#include <CLI/CLI.hpp>

namespace mainstay {
namespace {

/// Every command has --help: it is offered once, with the global ones.
std::string options_of(const CLI::App& app) {
    std::string out;
    for (const auto* option : app.get_options())
        for (const auto& name : option->get_lnames())
            if (name != "help" || app.get_parent() == nullptr) out += " --" + name;
    return out;
}

std::string commands_of(const CLI::App& app) {
    std::string out;
    for (const auto* sub : app.get_subcommands({})) out += " " + sub->get_name();
    return out;
}

/// "        session) words='list show ...';;" for each command, "session list)" for each of the second level.
void append_cases(std::string& out, const CLI::App& app, const std::string& before, const std::string& global) {
    for (const auto* sub : app.get_subcommands({})) {
        const std::string path = before + sub->get_name();
        out += "        '" + path + "') words='" + (commands_of(*sub) + options_of(*sub) + global).substr(1) + "';;\n";
        append_cases(out, *sub, path + " ", global);
    }
}

}  // namespace

std::string completion_script(const CLI::App& app, std::string_view shell) {
    std::string out;
    if (shell == "zsh") out += "autoload -U +X bashcompinit && bashcompinit\n";
    out +=
        "_mainstay() {\n"
        "    local path='' word words\n"
        "    for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
        "        case \"$word\" in -*) ;; *) path=\"${path:+$path }$word\";; esac\n"
        "    done\n"
        "    case \"$path\" in\n";
    const std::string global = options_of(app);
    append_cases(out, app, "", global);
    out += "        '') words='" + (commands_of(app) + global).substr(1) +
           "';;\n"
           "        *) words='" +
           global.substr(1) +
           "';;\n"
           "    esac\n"
           "    COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
           "}\n"
           "complete -o default -F _mainstay mainstay\n";
    return out;
}

}  // namespace mainstay
