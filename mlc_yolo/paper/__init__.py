"""The papers' tables: rows, how a row is reproduced, and the pages made from the results."""
