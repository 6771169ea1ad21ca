"""The papers' tables: rows, how a row is reproduced, and the README made from the results."""
