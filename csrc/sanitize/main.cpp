// Runs every native operator on every instruction set of this processor, on one thread and on two, against plain loops.
// Built by `make sanitize` so that the first access outside memory and the first undefined operation end it.
//
// Names given as arguments choose among the operators. One line an operator; the exit code is 1 if any is wrong.
#include <cstdio>
#include <cstdlib>

#include "../cpu/threads.h"
#include "check.h"

namespace medsora::check {
namespace {

bool wanted(const std::string& name, int count, char** names) {
    return count == 0 || std::find(names, names + count, name) != names + count;
}

// What is wrong, or nothing.
std::string complaint(const Operator& op) {
    for (Isa named : supported_isas()) {
        setenv("MEDSORA_ISA", name_of(named), 1);
        for (int threads : {1, 2}) {
            const Setting setting{isa_in_use(), threads};
            try {
                op.run(setting);
            } catch (const std::exception& error) {
                std::ostringstream message;
                message << name_of(setting.isa) << ", threads " << threads << ": " << error.what();
                return message.str();
            }
        }
    }
    return "";
}

int run(int count, char** names) {
    std::string isas;
    for (Isa isa : supported_isas()) isas += std::string(isas.empty() ? "" : ", ") + name_of(isa);
    std::printf("%s; 1 and %d threads\n", isas.c_str(), threads_seen(2));
    int done = 0, wrong = 0;
    for (const Operator& op : operators()) {
        if (!wanted(op.name, count, names)) continue;
        const std::string message = complaint(op);
        std::printf("%-24s %s\n", op.name, message.empty() ? "right" : ("WRONG on " + message).c_str());
        std::fflush(stdout);
        ++done;
        wrong += !message.empty();
    }
    if (done == 0) std::printf("no operator has such a name\n");
    return done == 0 || wrong > 0;
}

}  // namespace
}  // namespace medsora::check

int main(int count, char** arguments) { return medsora::check::run(count - 1, arguments + 1); }
