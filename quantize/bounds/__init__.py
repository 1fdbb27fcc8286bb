"""The range proof: what no input can push out of its register, and for the rest an input that does.

intervals     what a step makes of intervals: all that a proof rests on, beside the arithmetic itself
certificate   the claims as data, and the file they are kept in
checker       whether the claims of a file hold
replay        what an input pushes the states to
search        finds claims in closed form
witness       looks for an input that overflows
cones         one neuron and all that leads to it, decided by an SMT solver
proof         all of it together: a network's certificate
"""
