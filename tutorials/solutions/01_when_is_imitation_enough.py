"""Solutions of tutorial 1, a section for each exercise cell. `# %%` names the cell's grade_id.

A section replaces the whole cell. The marks stay: `nbgrader generate_assignment` clears by them.
"""

import numpy as np

# %% exercise_1


def confidence_widths(counts, delta):
    """Widths that hold for all soups at once with probability 1 - delta; 1 where the count is 0."""
    ### BEGIN SOLUTION
    # 2 exp(-2 n b^2) = delta / A, solved for b
    widths = np.sqrt(np.log(2 * len(counts) / delta) / (2 * np.maximum(counts, 1)))
    return np.where(counts > 0, widths, 1.0)
    ### END SOLUTION


# %% exercise_2


def careful_choice(counts, sold, widths):
    """The number of the soup with the highest lower confidence bound."""
    ### BEGIN SOLUTION
    averages = sold / np.maximum(counts, 1)  # 0 where never cooked
    return np.argmax(averages - widths)
    ### END SOLUTION


# %% exercise_3


def concentrability(shares, rates):
    """C* of a log with these shares of the arms, whose true rates are known."""
    ### BEGIN SOLUTION
    return 1 / shares[np.argmax(rates)]
    ### END SOLUTION


def copying_error_bound(c_star, size):
    """Chernoff's bound on the probability that copying is wrong; 1 for c_star of 2 or more."""
    ### BEGIN SOLUTION
    if c_star >= 2:
        return 1.0
    # p = 1 / C*, so p (1 - p) = (C* - 1) / C*^2
    return (2 * np.sqrt(c_star - 1) / c_star) ** size
    ### END SOLUTION


# %% exercise_4


def design_log(kinds, excess):
    """Arrivals (kinds + 1,) and log (kinds + 1, 2) with C* = 1 + excess."""
    ### BEGIN SOLUTION
    # The log sums to ((1 - w) + 2 w) / C* = (1 + w) / C*; that is 1 for w = C* - 1.
    arrivals = np.append(1 - excess, np.full(kinds, excess / kinds))
    log = np.stack([arrivals, arrivals], axis=1) / (1 + excess)
    log[0, 1] = 0
    return arrivals, log
    ### END SOLUTION
