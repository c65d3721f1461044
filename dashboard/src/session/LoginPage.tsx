import { Alert, Button, Center, Code, Paper, PasswordInput, Stack, Text, Title } from '@mantine/core';
import { type FormEvent, useState } from 'react';
import { failure } from '../api/client';
import type { Credentials } from './session';

interface Props {
  /** What happened, if the visitor was in before. */
  why: string | undefined;
  onLogin: (credentials: Credentials) => Promise<void>;
}

export function LoginPage({ why, onLogin }: Props) {
  const [token, setToken] = useState('');
  const [refusal, setRefusal] = useState(why);
  const [busy, setBusy] = useState(false);

  const submit = async (event: FormEvent) => {
    event.preventDefault();
    setBusy(true);
    try {
      await onLogin({ token });
    } catch (error) {
      setRefusal(failure(error).message);
      setBusy(false);
    }
  };

  return (
    <Center component="main" mih="100vh" p="md">
      <Paper withBorder p="xl" w={440} maw="100%" radius="md">
        <form onSubmit={submit}>
          <Stack>
            <Title order={1} size="h2">
              Queztl
            </Title>
            {refusal && (
              <Alert color="orange" title="Not logged in" role="alert">
                {refusal}
              </Alert>
            )}
            <Text>
              On the daemon’s host, <Code>queztl-hv dashboard</Code> opens this page logged in. From
              elsewhere, log in with a token that <Code>queztl-hv token create</Code> made.
            </Text>
            <PasswordInput
              label="Token"
              placeholder="qz_…"
              value={token}
              onChange={(event) => setToken(event.currentTarget.value)}
              autoComplete="current-password"
              required
            />
            <Button type="submit" loading={busy} disabled={!token.trim()}>
              Log in
            </Button>
          </Stack>
        </form>
      </Paper>
    </Center>
  );
}
