CREATE ROLE company;
