// The command line client. Everything that it does is in cli_*.cpp; this file only meets the process.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>

#include "tools/cli_commands.h"

int main(int argc, char** argv) {
    std::signal(SIGPIPE, SIG_IGN);  // `mainstay ... | head` ends quietly
    const auto variable = [](const char* name) {
        const char* value = std::getenv(name);
        return std::string(value ? value : "");
    };
    const bool interactive = ::isatty(STDIN_FILENO) && ::isatty(STDOUT_FILENO);
    return mainstay::run_cli(std::vector<std::string>(argv + 1, argv + argc),
                             {variable("MAINSTAY_URL"), variable("MAINSTAY_ADMIN_KEY")},
                             {std::cin, std::cout, std::cerr, interactive});
}
