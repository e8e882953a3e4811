"""Builds the report page: reads the tools' JSON files and writes one HTML file with sections, figures and tables."""
