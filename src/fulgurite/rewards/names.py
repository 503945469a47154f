"""Names that stand for something: functions, Greek letters, signs over a letter."""

TRIGONOMETRY = "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc asin acos atan sinh cosh tanh"
FUNCTIONS = {*TRIGONOMETRY.split(), "exp", "ln", "log", "lg", "det", "gcd", "lcm", "max", "min"}
SMALL = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
upsilon phi varphi chi psi omega"""
CAPITAL = "Gamma Delta Theta Lambda Xi Sigma Upsilon Phi Psi Omega"
GREEK_LETTERS = {*SMALL.split(), *CAPITAL.split(), "hbar", "ell"}
SIGNS_OVER = "vec hat bar dot ddot tilde overline overrightarrow widehat mathbb mathcal"
DECORATIONS = {"\\" + name for name in SIGNS_OVER.split()}
