import { Anchor, Stack, Text, Title } from '@mantine/core';
import { Link } from '@tanstack/react-router';

export function NotFound({ what = 'There is no such page.' }: { what?: string }) {
  return (
    <Stack align="flex-start">
      <Title order={1} size="h2">
        Not found
      </Title>
      <Text>{what}</Text>
      <Anchor component={Link} to="/">
        All machines
      </Anchor>
    </Stack>
  );
}
